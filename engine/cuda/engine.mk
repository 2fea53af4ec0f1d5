# The CUDA engine: `make engine` builds build/forerun-cuda: everything that build/forerun has, and run on GPUs. GSL, SQLite,
# jansson and the CUDA runtime are linked statically; cuBLASLt and cuDNN are the shared libraries of CUDA 13 (the program
# refuses others). Active only where nvcc is (kernels/kernels.mk finds it).
ifneq ($(NVCC),)
ENGINE_C   := $(wildcard engine/cuda/*.c engine/cuda/transport/*.c)
ENGINE_OBJ := $(ENGINE_C:%.c=$(BUILD)/%.o) $(CLI_SRC:%.c=$(BUILD)/cuda/%.o)
STATIC     = -l:libjansson.a -l:libsqlite3.a -l:libgsl.a -l:libgslcblas.a

$(ENGINE_C:%.c=$(BUILD)/%.o): CFLAGS += -DFR_CUDA -isystem $(CUDA_HOME)/include

# The command line once more, with the commands that need a GPU.
$(BUILD)/cuda/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -DFR_CUDA -c -o $@ $<

$(BUILD)/forerun-cuda: $(ENGINE_OBJ) $(BUILD)/libforerun.a $(BUILD)/libkernels.a
	$(CXX) $(OPT) $(EXTRA) -pthread -o $@ $(ENGINE_OBJ) $(BUILD)/libkernels.a $(BUILD)/libforerun.a $(STATIC) $(CUDA_LIBS)

# A process per rank, on one host or several: the same program under mpirun.
CUDA_MPI_OBJ := $(filter-out $(BUILD)/engine/cuda/cmd_run.o,$(ENGINE_C:%.c=$(BUILD)/%.o)) \
    $(CLI_SRC:%.c=$(BUILD)/cuda-mpi/%.o) $(BUILD)/cuda-mpi/engine/cuda/cmd_run.o \
    $(BUILD)/mpi/sim/mpi/mpi_sweep.o $(BUILD)/mpi/sim/mpi/mpi_wire.o
$(BUILD)/cuda-mpi/%.o: %.c
	@mkdir -p $(@D)
	$(MPICC) $(CFLAGS) -DFR_CUDA -DFR_MPI -isystem $(CUDA_HOME)/include -c -o $@ $<
$(BUILD)/forerun-cuda-mpi: $(CUDA_MPI_OBJ) $(BUILD)/libforerun.a $(BUILD)/libkernels.a
	OMPI_CXX=$(CXX) mpicxx $(OPT) $(EXTRA) -pthread -o $@ $(CUDA_MPI_OBJ) $(BUILD)/libkernels.a $(BUILD)/libforerun.a $(STATIC) $(CUDA_LIBS)
.PHONY: engine-mpi
engine-mpi: $(BUILD)/forerun-cuda-mpi

# Tests of parts of the engine that need several GPUs.
TRANSPORT_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(wildcard engine/cuda/transport/*.c)) $(BUILD)/engine/cuda/device.o $(BUILD)/engine/cuda/words.o
$(BUILD)/tests/gpu/test_transport.o: CFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/gpu/test_transport: $(BUILD)/tests/gpu/test_transport.o $(BUILD)/tests/gpu/hold.cu.o $(TRANSPORT_OBJ) $(BUILD)/libforerun.a $(BUILD)/libkernels.a
	@mkdir -p $(@D)
	$(CXX) $(OPT) $(EXTRA) -pthread -o $@ $< $(BUILD)/tests/gpu/hold.cu.o $(TRANSPORT_OBJ) $(BUILD)/libkernels.a $(BUILD)/libforerun.a $(STATIC) $(CUDA_LIBS)
# What the SM clock does as loads come and go.
BENCH_OBJ = $(filter-out $(BUILD)/engine/cuda/cmd_%,$(ENGINE_C:%.c=$(BUILD)/%.o))
$(BUILD)/tests/gpu/bench_clock.o: CFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/gpu/bench_clock: $(BUILD)/tests/gpu/bench_clock.o $(BENCH_OBJ) $(BUILD)/libforerun.a $(BUILD)/libkernels.a
	@mkdir -p $(@D)
	$(CXX) $(OPT) $(EXTRA) -pthread -o $@ $< $(BENCH_OBJ) $(BUILD)/libkernels.a $(BUILD)/libforerun.a $(STATIC) $(CUDA_LIBS)
# To preload where nothing may create a multicast object.
$(BUILD)/gpu/no_multicast.so: tests/gpu/no_multicast.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -fPIC -shared -o $@ $< -ldl
$(BUILD)/tests/gpu/bench_load.o: CFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/gpu/bench_load: $(BUILD)/tests/gpu/bench_load.o $(BUILD)/engine/base.o
	@mkdir -p $(@D)
	$(CC) $(OPT) $(EXTRA) -pthread -o $@ $^ -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt
gpu-test-build: $(BUILD)/gpu/test_transport $(BUILD)/gpu/bench_clock $(BUILD)/gpu/bench_load $(BUILD)/gpu/no_multicast.so

.PHONY: engine
engine: $(BUILD)/forerun-cuda
else
.PHONY: engine
engine:
	@echo "nvcc not found: set CUDA_HOME to a CUDA 13.0 toolkit" >&2; exit 1
endif
