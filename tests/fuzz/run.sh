#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS over its corpus (tests/fuzz/corpus/NAME) and closes on "N passed, N failed".
set -u
dir=${FUZZ_DIR:-build/asan/fuzz} seconds=${FUZZ_SECONDS:-2} passed=0 failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    corpus="tests/fuzz/corpus/${name#fuzz_}"
    case $name in # what ships are the seeds
    fuzz_config) corpus=engine/builtin/models ;;
    fuzz_machine) corpus=engine/builtin/machines ;;
    esac
    if out=$(timeout $((seconds * 10 + 20)) "$dir/$name" "$corpus" "$seconds" 2>&1); then
        passed=$((passed + 1))
        echo "$name: $out"
    else
        failed=$((failed + 1))
        echo "$name FAILED (input in fuzz-crash.bin):"
        echo "$out" | tail -n 30
    fi
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
