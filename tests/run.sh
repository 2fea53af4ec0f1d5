#!/usr/bin/env bash
# Runs the test programs named as arguments (cmocka programs, and scripts that close on "N passed, N failed"), shows what fails, and closes on the
# plain line "N passed, N failed" over all of them. A program that dies counts as one failure.
set -u
passed=0 failed=0 logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for t in "$@"; do
    name=$(basename "$t") start=$(date +%s)
    [ "$name" = run.sh ] && name=$(basename "$(dirname "$t")")
    log="$logs/$name.log"
    "$t" >"$log" 2>&1
    status=$?
    p=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | awk '{s += $1} END {print s + 0}')
    f=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$log" | awk '{s += $1} END {print s + 0}')
    plain=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
    if [ -n "$plain" ]; then
        p=$(echo "$plain" | awk '{print $1}') f=$(echo "$plain" | awk '{print $3}')
    fi
    [ $status -ne 0 ] && [ "$f" -eq 0 ] && f=1
    [ $status -eq 0 ] && [ $((p + f)) -eq 0 ] && f=1
    passed=$((passed + p)) failed=$((failed + f))
    printf '%-28s %4d passed %3d failed  %3d s\n' "$name" "$p" "$f" $(($(date +%s) - start))
    if [ "$f" -gt 0 ]; then
        grep -vE '^\[ +(OK|RUN) ' "$log" | tail -n 60
        [ $status -gt 1 ] && echo "($name ended with status $status)"
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
