# make bench: speed of the pieces and of whole jobs; every piece prints what it did and in what time
.PHONY: bench bench-player bench-jobs
bench: bench-player bench-jobs
bench-player: $(BUILD)/bench/bench_player
	$<

$(BUILD)/bench/%: tests/bench/%.c $(BUILD)/libforerun.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -MF $@.d -o $@ $< $(BUILD)/libforerun.a $(LDLIBS)
bench-jobs: $(BUILD)/forerun
	FORERUN=$(BUILD)/forerun tests/bench/jobs.sh
