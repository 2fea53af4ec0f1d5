# forerun: `make help` lists what can be made. See README.md.
BUILD  ?= build
CC     ?= gcc
CSTD    = -std=c17
WARN    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
OPT    ?= -O3 -g
CFLAGS  = $(CSTD) $(WARN) $(OPT) -D_GNU_SOURCE -DHAVE_INLINE -I. -MMD -MP -pthread $(EXTRA)
LDLIBS  = -ljansson -lsqlite3 -lgsl -lgslcblas -lm -lpthread
SAN     = -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=all

LIB_SRC  := $(wildcard engine/*.c engine/strategy/*.c engine/sched/*.c engine/conduct/*.c engine/cost/*.c engine/calibrate/*.c engine/world/*.c engine/plan/*.c traces/*.c sim/*.c)
CLI_SRC  := $(wildcard sim/cli/*.c)
TEST_SRC := $(wildcard tests/unit/test_*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ  := $(CLI_SRC:%.c=$(BUILD)/%.o)
TESTS    := $(TEST_SRC:tests/unit/%.c=$(BUILD)/tests/%)

include engine/builtin/builtin.mk

all: $(BUILD)/forerun

# What results are made of: a hash of the model's sources, shipped tables and descriptions (fr_source_hash in engine/base.h).
SOURCE := $(filter-out engine/conduct/% engine/world/% engine/calibrate/%,$(sort $(LIB_SRC) $(wildcard $(addsuffix *.h,$(dir $(LIB_SRC)))))) \
          $(sort $(wildcard kernels/measured/*.txt)) $(BUILTIN_MODELS) $(BUILTIN_MACHINES)
LIB_OBJ += $(BUILD)/source.o
$(BUILD)/source.c: $(SOURCE)
	@mkdir -p $(@D)
	@printf '#include "engine/base.h"\nconst char *fr_source_hash(void) {\n    return "%s";\n}\n' "$$(cat $(SOURCE) | sha256sum | cut -c1-12)" >$@.part && mv $@.part $@
$(BUILD)/source.o: $(BUILD)/source.c
	$(CC) $(CFLAGS) -c -o $@ $<

# what `make help` prints
define HELP
make              build/forerun: the simulator, no GPU or CUDA needed
make demo         a real trace over every layout: a ranking and figures in build/demo/ (installs what is missing)
make test         everything that needs no GPU: unit, fuzz and command-line tests (installs what is missing)
make unit T=plan  tests/unit/test_plan.c alone;  make units: all of them
make bench        speed of the simulator;  make coverage: which lines the tests run
make man          build/forerun.1
make mpi          build/forerun-mpi: sweeps over several hosts
make engine       build/forerun-cuda: everything and the CUDA engine;  make engine-mpi: over several hosts
make gpu-test     on a machine with Hopper GPUs: the engine's tests;  make gpu-bench: its figures
make format       clang-format;  make format-check: what CI looks at
make reference    the list of options in README.md, from the program
make clean        removes build/
endef
.PHONY: help
help:
	$(info $(HELP))@:

$(BUILD)/forerun: $(CLI_OBJ) $(BUILD)/libforerun.a
	$(CC) $(OPT) $(EXTRA) -o $@ $(CLI_OBJ) $(BUILD)/libforerun.a $(LDLIBS)

$(BUILD)/libforerun.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $(LIB_OBJ)

# the shipped cost tables are taken in byte for byte by the assembler (.incbin): rebuild when one changes
$(BUILD)/engine/cost/cost_builtin.o: $(wildcard kernels/measured/*.txt)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

# one binary per unit test file; `make unit T=plan` builds and runs tests/unit/test_plan.c alone
$(BUILD)/tests/%: $(BUILD)/tests/unit/%.o $(BUILD)/libforerun.a
	$(CC) $(OPT) $(EXTRA) -o $@ $(filter %.o,$^) $(BUILD)/libforerun.a $(LDLIBS) -lcmocka
.PRECIOUS: $(BUILD)/tests/unit/%.o $(BUILD)/tests/fuzz/%.o
$(BUILD)/tests/test_cells: $(BUILD)/sim/cli/args.o $(BUILD)/sim/cli/cells.o

# ---- several hosts: build/forerun-mpi is the same program whose sweep hands cells to MPI ranks; only it links MPI -------
MPICC   ?= mpicc
MPI_OBJ := $(CLI_SRC:%.c=$(BUILD)/mpi/%.o) $(BUILD)/mpi/sim/mpi/mpi_sweep.o $(BUILD)/mpi/sim/mpi/mpi_wire.o
$(BUILD)/mpi/%.o: %.c
	@mkdir -p $(@D)
	$(MPICC) $(CFLAGS) -DFR_MPI -c -o $@ $<
$(BUILD)/forerun-mpi: $(MPI_OBJ) $(BUILD)/libforerun.a
	$(MPICC) $(OPT) $(EXTRA) -o $@ $(MPI_OBJ) $(BUILD)/libforerun.a $(LDLIBS)
# a live run's ranks as processes, with ranks that only pretend: run by tests/cli/mpi.sh
$(BUILD)/mpi/test_conduct_mpi: $(BUILD)/mpi/tests/mpi/test_conduct_mpi.o $(BUILD)/mpi/sim/mpi/mpi_wire.o $(BUILD)/libforerun.a
	$(MPICC) $(OPT) $(EXTRA) -o $@ $^ $(LDLIBS)
.PHONY: mpi
mpi: $(BUILD)/forerun-mpi $(BUILD)/mpi/test_conduct_mpi

# ---- man page, from the same tables as --help ---------------------------------------------------------------------------
man: $(BUILD)/forerun.1
$(BUILD)/forerun.1: $(BUILD)/forerun
	$< --man >$@.part && mv $@.part $@

# ---- tests -------------------------------------------------------------------------------------------------------------
# make test: what README promises. Installs what is missing, builds, runs every CPU test; with nvcc present also compiles and links the engine.
FUZZ_SECONDS ?= 2
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ     := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)

$(BUILD)/fuzz/%: $(BUILD)/tests/fuzz/%.o $(BUILD)/tests/fuzz/standalone.o $(BUILD)/libforerun.a
	@mkdir -p $(@D)
	$(CC) $(OPT) $(EXTRA) -o $@ $(filter %.o,$^) $(BUILD)/libforerun.a $(LDLIBS)
$(BUILD)/fuzz/fuzz_cells: $(BUILD)/sim/cli/args.o $(BUILD)/sim/cli/cells.o

.PHONY: all unit units clean format format-check test check test-programs engine-check demo bench man
unit: $(BUILD)/tests/test_$(T)
	$<
units: $(TESTS)
	@tests/run.sh $(TESTS)
test-programs: $(TESTS) $(FUZZ)

test:
	@tests/deps.sh
	@$(MAKE) --no-print-directory -j2 all
	@$(MAKE) --no-print-directory -j2 BUILD=$(BUILD)/asan OPT="-O1 -g" EXTRA="$(SAN)" test-programs
	@$(MAKE) --no-print-directory engine-check
	@$(MAKE) --no-print-directory check

# Unit tests and fuzz targets run with the address and undefined-behaviour sanitizers; the command line as users have it.
check:
	@FORERUN=$(BUILD)/forerun FUZZ_DIR=$(BUILD)/asan/fuzz FUZZ_SECONDS=$(FUZZ_SECONDS) \
	    tests/run.sh $(TEST_SRC:tests/unit/%.c=$(BUILD)/asan/tests/%) tests/fuzz/run.sh tests/cli/run.sh

# make coverage: lines that unit tests, fuzz targets and command-line checks run, by folder
coverage:
	@BUILD=$(BUILD) CC=$(CC) tests/tools/coverage.sh
.PHONY: coverage

# make demo: the main job on a real trace, ending in a table and pictures under build/demo/
demo:
	@tests/deps.sh
	@$(MAKE) --no-print-directory -s -j2 all
	@FORERUN=$(BUILD)/forerun experiments/demo/demo.sh $(BUILD)/demo

engine-check:
	@if command -v nvcc >/dev/null 2>&1 && [ -f kernels/kernels.mk ]; then $(MAKE) --no-print-directory -j2 gpu-test-build engine; \
	else echo "no nvcc here: the engine is not compiled"; fi

clean:
	rm -rf $(BUILD)

# the README's list of options, from the program's own tables
reference: $(BUILD)/forerun
	FORERUN=$(BUILD)/forerun tests/tools/readme_reference.sh
.PHONY: reference

# on a machine with Hopper GPUs: kernels against CPU references, the engine against itself and transformers; then the figures
.PHONY: gpu-test gpu-bench
gpu-test: gpu-test-build engine
	@bash tests/gpu/run.sh $(BUILD)
gpu-bench: gpu-test-build engine
	$(BUILD)/forerun-cuda calibrate --quick --out $(BUILD)/gpu-bench-table.txt
	$(BUILD)/gpu/bench_kernels --out $(BUILD)/gpu-bench.txt
	@if python3 -c 'import torch, transformers' 2>/dev/null; then python3 tests/gpu/compare_torch.py && python3 tests/tools/hf_layers.py; \
	else echo "no PyTorch and transformers here: no comparators"; fi
	$(BUILD)/gpu/bench_uploads
	@[ $$(nvidia-smi -L | wc -l) -lt 2 ] || $(BUILD)/gpu/bench_pulls
	@[ $$(nvidia-smi -L | wc -l) -lt 2 ] || bash tests/gpu/bench_ranks.sh $(BUILD)/forerun-cuda

FORMATTED = $(filter-out kernels/% engine/cuda/% tests/gpu/%,$(shell git ls-files '*.c' '*.h'))
format:
	clang-format -i $(FORMATTED)
format-check:
	clang-format --dry-run -Werror $(FORMATTED)

include tests/bench/bench.mk

-include kernels/kernels.mk
-include engine/cuda/engine.mk

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
