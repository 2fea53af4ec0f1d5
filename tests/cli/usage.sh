# Usage: help of every command with an example, exit codes, lists, start-up.
expect 0 --help && prints simulate
expect 0 --version && prints "forerun "
for c in list plan simulate sweep run calibrate validate plot trace doctor; do
    expect 0 $c --help && prints "usage: forerun $c" && prints "example:"
    expect 0 help $c
done
for c in list plan sweep validate plot trace doctor simulate; do
    expect 0 $c --help
    [ "$(awk 'length > 100' "$out" | wc -l)" -eq 0 ] && pass || fail "$c --help has lines of more than 100 columns"
done
prints "(default bf16)" && prints "0 = all (default)"
# every option of an experiment is in the help, in the man page and in the reference
"$forerun" --man >"$work/man"
"$forerun" --reference >"$work/reference"
for o in $(sed -n 's/^  --\([a-z-]*\).*/\1/p' "$out"); do
    grep -qF -- "\\-\\-${o//-/\\-}" "$work/man" && pass || fail "--$o is not in the man page"
done
for o in model tokens trace gather what-if; do
    grep -q -- "--$o" "$work/reference" && pass || fail "--$o is not in the reference"
done

expect 2 nonsense && says nonsense
expect 2 simulate --nonsense 3 && says --nonsense
expect 2 simulate --tok 3 && says --tok
expect 2 simulate --tokens && says --tokens
expect 2 simulate --json=yes && says --json
expect 2 simulate a.json b.json && says b.json
expect 2 simulate /no/such/file.json && says /no/such/file.json
expect 2 list && says "forerun list"
expect 2 list kitchens && says kitchens
expect 2 list models --check && says --check
expect 2 run --strategy tp && says "make engine"
expect 2 calibrate && says "make engine"

expect 0 list models && prints qwen3-235b-a22b && prints mixtral-8x7b && prints deepseek-v3
expect 0 list machines && prints h200x8 && prints a100x8 && prints b200x8
expect 0 list strategies && for s in dp tp ep pp asyncep dwdp offload asap; do prints "$s "; done
expect 0 list traces && prints azure-code && prints poisson
expect 0 list figures && for f in throughput mfu breakdown gantt exposed memory pareto ttft critical whatif; do prints "$f"; done
expect 0 list costs --check --machine h200x8
expect 0 doctor && prints SQLite

# start-up in at most 20 ms: best of ten
best=1000000
for i in 1 2 3 4 5 6 7 8 9 10; do
    from=$(date +%s%N)
    "$forerun" list models >/dev/null
    took=$((($(date +%s%N) - from) / 1000))
    [ $took -lt $best ] && best=$took
done
[ $best -le ${STARTUP_US:-20000} ] && pass || fail "start-up takes $best us, more than 20 ms"

# output that cannot be written is a failure
if [ -e /dev/full ]; then
    "$forerun" list models >/dev/full 2>/dev/null
    [ $? -eq 1 ] && pass || fail "a full disk looks like success"
fi
