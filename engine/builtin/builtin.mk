# Compiles engine/builtin/{models,machines}/*.json into libforerun.a; needs sh, od and sed only.
.DEFAULT_GOAL    := all
BUILTIN_MODELS   := $(sort $(wildcard engine/builtin/models/*.json))
BUILTIN_MACHINES := $(sort $(wildcard engine/builtin/machines/*.json))
LIB_OBJ          += $(BUILD)/engine/builtin/builtin.o

$(BUILD)/engine/builtin/builtin.c: $(BUILTIN_MODELS) $(BUILTIN_MACHINES) engine/builtin/embed.sh engine/builtin/builtin.mk
	@mkdir -p $(@D)
	{ echo '#include "engine/builtin/builtin.h"'; \
	  sh engine/builtin/embed.sh fr_builtin_models $(BUILTIN_MODELS); \
	  sh engine/builtin/embed.sh fr_builtin_machines $(BUILTIN_MACHINES); } > $@.part
	mv $@.part $@

$(BUILD)/engine/builtin/builtin.o: $(BUILD)/engine/builtin/builtin.c
	$(CC) $(CFLAGS) -c -o $@ $<
