#!/usr/bin/env bash
# make coverage: lines that the CPU tests run, by folder (COVERAGE_BY=file: by file), from a build of their own. Needs gcov, nothing else.
set -eu
build=${BUILD:-build}/coverage root=$PWD
mkdir -p "$build"
# processes that end by _exit leave their counts behind too
cat >"$build/exit.c" <<'C'
#include <stdnoreturn.h>
void __gcov_dump(void);
noreturn void __real__exit(int status);
noreturn void __wrap__exit(int status);
void __wrap__exit(int status) {
    __gcov_dump();
    __real__exit(status);
}
C
${CC:-gcc} -c -o "$build/exit.o" "$build/exit.c"
make --no-print-directory -j2 BUILD="$build" OPT="-O0 -g" EXTRA="--coverage" \
    LDLIBS="$build/exit.o -Wl,--wrap=_exit -ljansson -lsqlite3 -lgsl -lgslcblas -lm -lpthread" all test-programs >"$build.log" 2>&1 ||
    { tail -n 20 "$build.log"; exit 1; }
find "$build" -name '*.gcda' -delete
cp "$build/forerun" "$build/../forerun-coverage" # beside the other: it finds the shipped traces from there
FORERUN=$build/../forerun-coverage FUZZ_DIR=$build/fuzz FUZZ_SECONDS=1 tests/run.sh $(ls tests/unit/test_*.c | sed "s#tests/unit/\(.*\)\.c#$build/tests/\1#") tests/fuzz/run.sh tests/cli/run.sh >"$build.log" || true
tail -n 1 "$build.log"
cd "$build"
find . -name '*.gcno' -not -path './tests/*' -not -path './fuzz/*' -print0 | xargs -0 gcov -n -s "$root" -r 2>/dev/null |
    awk -v by="${COVERAGE_BY:-folder}" '
        /^File/ { file = $2; gsub(/\x27/, "", file) }
        /^Lines executed/ && file ~ /\.c$/ {
            split($2, part, /[:%]/); lines = $4; ran = part[2] * lines / 100
            key = file; if (by == "folder") sub(/\/[^\/]*$/, "", key)
            all[key] += lines; got[key] += ran; sum += lines; have += ran; file = ""
        }
        END {
            for (k in all) printf "%-36s %6.1f %% of %5d lines\n", k, 100 * got[k] / all[k], all[k] | "sort"
            close("sort"); printf "%-36s %6.1f %% of %5d lines\n", "all", 100 * have / sum, sum
        }'
