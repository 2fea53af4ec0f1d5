# forerun: make test | make demo | make | make engine | make bench | make format. See README.md.
BUILD  ?= build
CC     ?= gcc
CSTD    = -std=c17
WARN    = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
OPT    ?= -O2 -g
CFLAGS  = $(CSTD) $(WARN) $(OPT) -D_GNU_SOURCE -I. -MMD -MP -pthread $(EXTRA)
LDLIBS  = -ljansson -lsqlite3 -lgsl -lgslcblas -lm -lpthread
SAN     = -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=all

LIB_SRC  := $(wildcard engine/*.c engine/strategy/*.c engine/sched/*.c traces/*.c sim/*.c)
CLI_SRC  := $(wildcard sim/cli/*.c)
TEST_SRC := $(wildcard tests/unit/test_*.c)
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ  := $(CLI_SRC:%.c=$(BUILD)/%.o)
TESTS    := $(TEST_SRC:tests/unit/%.c=$(BUILD)/tests/%)

include engine/builtin/builtin.mk

all: $(BUILD)/forerun

$(BUILD)/forerun: $(CLI_OBJ) $(BUILD)/libforerun.a
	$(CC) $(OPT) $(EXTRA) -o $@ $(CLI_OBJ) $(BUILD)/libforerun.a $(LDLIBS)

$(BUILD)/libforerun.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $(LIB_OBJ)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c -o $@ $<

# one binary per unit test file; `make unit T=plan` builds and runs tests/unit/test_plan.c alone
$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libforerun.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MF $@.d -o $@ $< $(BUILD)/libforerun.a $(LDLIBS) -lcmocka

.PHONY: all unit units clean format
unit: $(BUILD)/tests/test_$(T)
	$<
units: $(TESTS)
	@set -e; for t in $(TESTS); do echo "== $$t"; $$t; done

clean:
	rm -rf $(BUILD)

format:
	clang-format -i $$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
