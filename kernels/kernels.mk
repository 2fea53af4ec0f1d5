# CUDA kernels: `make kernels` builds build/libkernels.a, `make gpu-test-build` the GPU tests and the micro-benchmark.
# Nothing here is needed by the CPU build; without nvcc the two targets say so.
CUDA_HOME ?= /usr/local/cuda
NVCC      ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null))

ifneq ($(NVCC),)
NVFLAGS    = -std=c++17 -O3 -lineinfo -I. -gencode=arch=compute_90a,code=sm_90a -Xcompiler -Wall,-Wextra,-fno-strict-aliasing
KERNEL_CU  := $(wildcard kernels/*.cu)
KERNEL_C   := $(wildcard kernels/*.c)
KERNEL_OBJ := $(KERNEL_CU:%.cu=$(BUILD)/%.cu.o) $(KERNEL_C:%.c=$(BUILD)/%.o)
# cuBLASLt and cuDNN are shared libraries only; the run-time versions are compared with these headers when opened.
CUDA_LIBS  = -L$(CUDA_HOME)/lib64 -lcudart_static -lcublasLt -lcudnn -ldl -lrt -lpthread -lm

$(BUILD)/%.cu.o: %.cu $(wildcard kernels/*.h kernels/*.cuh tests/gpu/*.h)
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -c -o $@ $<

$(KERNEL_C:%.c=$(BUILD)/%.o): CFLAGS += -isystem $(CUDA_HOME)/include

$(BUILD)/libkernels.a: $(KERNEL_OBJ)
	@rm -f $@
	ar rcs $@ $(KERNEL_OBJ)

$(BUILD)/gpu/%: $(BUILD)/tests/gpu/%.cu.o $(BUILD)/libkernels.a $(BUILD)/engine/base.o
	@mkdir -p $(@D)
	$(CXX) -o $@ $< $(BUILD)/libkernels.a $(BUILD)/engine/base.o $(CUDA_LIBS)

.PRECIOUS: $(BUILD)/tests/gpu/%.cu.o
.PHONY: kernels gpu-test-build
kernels: $(BUILD)/libkernels.a
gpu-test-build: $(addprefix $(BUILD)/gpu/,test_kernels test_fp8 test_copies test_exchange test_carry bench_gathers bench_kernels bench_fp8 bench_pulls bench_uploads)
else
.PHONY: kernels gpu-test-build
kernels gpu-test-build:
	@echo "nvcc not found: set CUDA_HOME to a CUDA 13.0 toolkit" >&2; exit 1
endif
