# make bench: speed of the pieces and of whole jobs; every piece prints what it did and in what time
.PHONY: bench bench-player
bench: bench-player
bench-player: $(BUILD)/bench/bench_player
	$<

$(BUILD)/bench/%: tests/bench/%.c $(BUILD)/libforerun.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MF $@.d -o $@ $< $(BUILD)/libforerun.a $(LDLIBS)
