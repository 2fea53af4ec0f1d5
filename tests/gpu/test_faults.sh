#!/usr/bin/env bash
# The engine on two GPUs when ranks go wrong or are unlike: every fault ends the whole run within the timeout with one
# message and keeps what was done; uneven, empty and slow ranks are waited for, and the accounts say who waited.
#   tests/gpu/test_faults.sh [ENGINE [OUT]]        PARTS="faults uneven traces processes"
# Faults are injected on the host's side (--inject); small random models, so that all of it takes some two minutes.
set -u
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/faults}
parts=${PARTS:-faults uneven traces processes}
mkdir -p "$out"
. "$(dirname "$0")/lib.sh"
model="--model qwen3-30b-a3b --layers 4 --skew uniform --fit-rounds 0 --no-predict --warmup 0 --machine h200x2 --gpus 2"
layouts="dp tp ep pp asyncep dwdp asap"

breaks() { # NAME SECONDS TEXT flags...: exit 1 within SECONDS after the models are there, one message that has TEXT
    local name=$1 limit=$2 text=$3 began ended code; shift 3
    began=$(date +%s%N)
    # shellcheck disable=SC2086
    timeout 60 "$engine" run $model --tokens 2K --seq 512 --forwards 8 "$@" >"$out/$name.out" 2>"$out/$name.err"
    code=$? ended=$(date +%s%N)
    local took=$(((ended - began) / 1000000)) lines; lines=$(grep -c "forerun run:" "$out/$name.err")
    if [ $code -eq 1 ] && [ "$lines" -eq 1 ] && grep -q "$text" "$out/$name.err" && [ $took -lt $((limit * 1000)) ]; then ok
    else bad "$name: exit $code, $lines messages: $(tail -n 2 "$out/$name.err" | cut -c 1-200)"; fi
    printf '%-16s %6d ms  %s\n' "$name" $took "$(grep "forerun run:" "$out/$name.err" | head -n 1 | cut -c 1-150)"
}
runs() { # NAME flags...: succeeds; the parts of every rank add up; prints who waited
    local name=$1; shift
    # shellcheck disable=SC2086
    if ! timeout 60 "$engine" run $model --json "$@" >"$out/$name.json" 2>"$out/$name.err"; then bad "$name: $(tail -n 1 "$out/$name.err" | cut -c 1-200)"; return; fi
    if $python - "$name" "$out/$name.json" <<'PY'
import json, sys
r = json.load(open(sys.argv[2]))
fail = []
for k in r["ranks"]:
    parts = k["compute_s"] + k["exposed_comm_s"] + k["wait_s"] + k["bubble_s"] + k["idle_s"]
    if abs(parts - k["elapsed_s"]) > 2e-9: fail.append(f"rank {k['rank']}: parts {parts} of {k['elapsed_s']}")
    if k["clock_error_s"] is None or k["clock_error_s"] > 10e-6: fail.append(f"rank {k['rank']}: clock off by {k['clock_error_s']}")
whole = r["elapsed_s"] if r["trace"] else r["forward_s"]
one = r["compute_s"] + r["exposed_comm_s"] + r["wait_s"] + r["bubble_s"] + r["idle_s"]
if abs(one - whole) > 2e-9: fail.append(f"{whole} s, parts {one}")
ms = lambda k, x: f"{k[x] * 1e3:8.3f}"
print(f"{sys.argv[1]:<20} forward {r['forward_s']*1e3:8.3f} ms; ranks: " + " | ".join(
    f"compute{ms(k,'compute_s')} exposed{ms(k,'exposed_comm_s')} wait{ms(k,'wait_s')} bubble{ms(k,'bubble_s')} idle{ms(k,'idle_s')}" for k in r["ranks"]),
    "; ".join(fail))
sys.exit(bool(fail))
PY
    then ok; else bad "$name"; fi
}
value() { $python -c "import json,sys; r=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))" "$out/$1.json" "$2"; }
check() { # NAME EXPRESSION over the result r
    if [ "$(value "$1" "$2")" = True ]; then ok; else bad "$1: $2"; fi
}

if has faults; then
    for s in $layouts; do
        breaks "fail-$s" 30 "rank 1: forward 3 fails" --strategy "$s" --inject fail:1:3 --timeout 10
    done
    for s in dp tp ep pp; do breaks "stall-$s" 30 "rank 0 has not issued" --strategy "$s" --inject stall:0:3 --timeout 3; done
    breaks stall-asap 30 "rank 1 has not issued" --strategy asap --inject stall:1:3 --timeout 3 # rank 0 waits for it
    for s in dp ep; do breaks "oom-$s" 30 "rank 1: out of GPU memory" --strategy $s --inject oom:1 --timeout 10; done
    # what was done before the fault is stored, and marked
    rm -f "$out/part.db"
    breaks part 30 "forward 5 fails" --strategy dp --inject fail:0:5 --timeout 10 --db "$out/part.db"
    if grep -q "forwards until then are stored" "$out/part.err" && "$engine" trace "$out/part.db" -o "$out/part.json" 2>>"$out/part.err"; then ok; else bad "part: nothing stored"; fi
fi
if has uneven; then
    for s in $layouts; do runs "even-$s" --strategy "$s" --tokens 2K --seq 512 --forwards 6; done
    for s in dp ep asyncep dwdp asap; do
        runs "uneven-$s" --strategy "$s" --seqs "1,37,512/2000,300" --forwards 6
        runs "turns-$s" --strategy "$s" --seqs "512x4/;/64x20;1/2048" --forwards 6
        runs "empty-$s" --strategy "$s" --seqs "700/" --forwards 4
    done
    runs turns-tp --strategy tp --seqs "512x4;1;37,99" --forwards 6
    runs turns-pp --strategy pp --micro-batches 2 --seqs "512x4;1;37,99" --forwards 6
    for s in ep tp; do
        runs "slow-$s" --strategy "$s" --tokens 2K --seq 512 --forwards 6 --inject slow:1:20
        check "slow-$s" "r['ranks'][0]['wait_s'] > 0.05 > r['ranks'][1]['wait_s']"
    done
    for s in dp asyncep dwdp; do # ranks that do not meet do not wait
        runs "slow-$s" --strategy "$s" --tokens 2K --seq 512 --forwards 6 --inject slow:1:20
        check "slow-$s" "r['ranks'][0]['wait_s'] < 0.005 and r['ranks'][0]['elapsed_s'] < 0.6 * r['ranks'][1]['elapsed_s']"
    done
fi
if has traces; then # requests as they arrive, over the queues of all attention groups
    for s in $layouts; do
        runs "trace-$s" --strategy "$s" --warmup 0.2 --trace "poisson:rate=60,len=uniform(100,1000)" --duration 1
        check "trace-$s" "r['requests'] > 30 and r['tokens'] > 10000 and r['ttft_s']['p99'] < 1"
    done
    runs trace-siblings --strategy dp --route prefix --trace "batch:count=24,len=2K,prefix=1K,groups=4"
    check trace-siblings "r['requests'] == 24 and r['cached_tokens'] > 0"
fi
if has processes; then # a process per rank gives the bits that threads give
    for s in dp tp pp "ep --ep-exchange agrs"; do
        name=$(echo "$s" | tr -d ' -')
        # shellcheck disable=SC2086
        runs "threads-$name" --strategy $s --tokens 2K --seq 512 --forwards 4
        # shellcheck disable=SC2086
        runs "procs-$name" --strategy $s --tokens 2K --seq 512 --forwards 4 --procs
        if [ "$(value "threads-$name" "r['logits_hash']")" = "$(value "procs-$name" "r['logits_hash']")" ]; then ok; else bad "procs-$name: other logits"; fi
    done
    breaks procs-fail 30 "rank 1: forward 3 fails" --strategy tp --procs --inject fail:1:3 --timeout 10
    breaks procs-oom 30 "rank 1: out of GPU memory" --strategy dp --procs --inject oom:1 --timeout 10
    breaks procs-stall 30 "rank 1 has not issued" --strategy dp --procs --inject stall:1:3 --timeout 3
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
