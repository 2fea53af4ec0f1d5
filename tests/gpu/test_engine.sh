#!/usr/bin/env bash
# The engine on one Hopper GPU: what it stands on, its logits against transformers, how it fails, then its speed.
#   tests/gpu/test_engine.sh [ENGINE [OUT]]       PARTS="doctor logits failures keep load speed depth lengths idle trace comparators"
# The libraries are those of CUDA 13 that the program was built against; where PyTorch brings them, its folders come first.
set -u
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/engine}
parts=${PARTS:-doctor logits failures keep load speed depth lengths idle trace comparators}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
. "$(dirname "$0")/lib.sh"
line() { # NAME JSON: one line of the result
    $python - "$1" "$2" <<'PY'
import json, sys
r = json.load(open(sys.argv[2]))
d, p, layers = r["device"], r.get("predicted") or {}, r["layers"]
f, pf = r["forward_s"] * 1e3, (p.get("forward_s") or 0) * 1e3
t, pt = (r["ttft_s"]["p50"] or 0) * 1e3, (p.get("ttft_p50_s") or 0) * 1e3
print(f"{sys.argv[1]:<26} forward {f:9.3f} ms (predicted {pf:9.3f}), layer {f/layers:7.3f}, MFU {r['mfu']*100:5.1f} %, "
      f"TTFT p50 {t:8.2f} ({pt:8.2f}), late host {100*d['host_late_s']/max(r['forward_s']*r['forwards'],1e-9):5.2f} %, "
      f"{d['sm_mhz']:.0f} MHz, {d['watts']:.0f} W, routing off {r['routing_error'] or 0:.3f}, weights {d['weights_s']:.2f} s")
PY
}
asked=
rm -f "$out/cells.txt"
measure() { # NAME flags...: one more run for `measured`
    echo "$1 | ${*:2}" >>"$out/cells.txt"
    asked="$asked $1"
}
measured() { # what was asked for, in one process: a start costs 3 s
    for name in $asked; do rm -f "$out/$name.json"; done
    timeout 600 "$engine" run --machine h200x1 --strategy dp --db "$out/engine.db" --cells "$out/cells.txt" --results "$out" \
        --limit "${LIMIT:-500}" >"$out/cells.log" 2>&1
    for name in $asked; do
        if [ -s "$out/$name.json" ] && line "$name" "$out/$name.json"; then ok; else bad "$name: $(grep "^$name " "$out/cells.log")"; fi
    done
    asked=
    rm -f "$out/cells.txt"
}
refuses() { # EXIT TEXT flags...: ends within 30 s, with that exit code and that text
    local code=$1 text=$2; shift 2
    timeout 30 "$engine" run --machine h200x1 --strategy dp --no-predict --warmup 0 "$@" >"$out/refused" 2>&1
    local got=$?
    if [ $got -eq "$code" ] && grep -q "$text" "$out/refused"; then ok; else bad "exit $got: $(tail -n 2 "$out/refused")"; fi
    grep "forerun run:" "$out/refused" | cut -c 1-240
}
if has doctor; then if timeout 30 "$engine" doctor; then ok; else bad doctor; fi; fi
if has logits; then
    if timeout 280 $python "$here/tests/tools/hf_logits.py" --engine "$engine" --dir "$out/hf" >"$out/logits.txt" 2>&1; then ok; else bad logits; fi
    grep -v "Loading weights\|Writing model" "$out/logits.txt"
    if timeout 120 $python "$here/tests/tools/hf_fp8.py" --engine "$engine" --dir "$out/hf" >"$out/fp8.txt" 2>&1; then ok; else bad fp8; fi
    grep -v "Loading weights\|Writing model" "$out/fp8.txt"
fi
if has failures; then
    refuses 1 "is at op" --model qwen3-30b-a3b --layers 8 --tokens 16K --forwards 2 --timeout 0.001
    refuses 1 "are free: --resident-layers" --machine b200x8 --gpus 1 --model qwen3-235b-a22b --layers 31 --tokens 1K --seq 1K
    refuses 1 "does not fit" --model qwen3-235b-a22b
    NCCL_NVLS_ENABLE=1 refuses 2 "NCCL_NVLS_ENABLE" --model qwen3-30b-a3b --layers 1
fi
if has keep; then # what a run leaves behind: records, timeline, routing that the simulator plays, predicted beside measured
    cell="--model qwen3-30b-a3b --machine h200x1 --strategy dp --layers 4 --tokens 4K --seq 1K --forwards 3 --regime burst"
    db=$out/keep.db
    rm -f "$db" "$out/routing.txt"
    if timeout 60 "$engine" run $cell --skew deepseek-v3 --record-routing "$out/routing.txt" --db "$db" --perfetto "$out/keep.json" \
        --csv "$out/keep.csv" >"$out/keep.txt" 2>&1; then ok; else bad "keep: $(tail -n 2 "$out/keep.txt")"; fi
    if timeout 30 "$engine" simulate $cell --routing "$out/routing.txt" --db "$db" >"$out/keep-sim.txt" 2>&1; then ok; else bad "routing: $(tail -n 2 "$out/keep-sim.txt")"; fi
    if timeout 30 "$engine" validate "$db" --run 1 >"$out/keep-validate.txt" 2>&1 && grep -q expert_up "$out/keep-validate.txt"; then ok; else bad "validate: $(tail -n 2 "$out/keep-validate.txt")"; fi
    spans=$(grep -c ',expert_up,' "$out/keep.csv") events=$(grep -o '"name":"expert_up[^"]*"' "$out/keep.json" | wc -l)
    timeout 30 "$engine" trace "$db" --run 1 -o "$out/again.json"
    again=$(grep -o '"name":"expert_up[^"]*"' "$out/again.json" | wc -l)
    if [ "$events" -gt 0 ] && [ "$events" -eq "$again" ]; then ok; else bad "timeline: $events expert_up events written, $again stored"; fi
    if [ "$spans" -eq 12 ]; then ok; else bad "$spans expert_up spans of 3 forwards and 4 layers"; fi
    grep -E "forward|expert_up|attention" "$out/keep-validate.txt" | head -n 6
fi
if has load; then # 18 layers of Qwen3-30B's shape, 23.7 GB in 8 shards, in memory where there is room
    at=${LOAD_DIR:-/dev/shm}/fr_checkpoint.$$
    if timeout 100 $python "$here/tests/tools/make_checkpoint.py" --config "$here/engine/builtin/models/qwen3-30b-a3b.json" --layers 18 --dir "$at"; then
        for turn in 1 2 3; do
            if timeout 60 "$engine" run --weights "$at" --machine h200x1 --strategy dp --tokens 512 --seq 512 --forwards 2 --regime burst --no-predict >"$out/load.txt" 2>&1; then ok; else bad "load: $(tail -n 2 "$out/load.txt")"; fi
            grep weights "$out/load.txt" | head -n 1
        done
        bench=${BENCH_LOAD:-build/gpu/bench_load} # what the medium and the link give
        if [ ! -x "$bench" ]; then echo "no $bench"; elif timeout 60 "$bench" "$at"/*.safetensors; then ok; else bad bench_load; fi
    else bad "make_checkpoint"; fi
    rm -rf "$at"
fi
big="--model qwen3-235b-a22b --tokens 16K --seq 4K --skew uniform"
if has speed; then
    measure layer-16k-burst $big --layers 8 --forwards 4 --regime burst
    measure layer-16k-sustained $big --layers 8 --forwards 24
    measure layer-16k-fp8-burst $big --precision fp8 --layers 8 --forwards 4 --regime burst
    measure layer-16k-fp8-sustained $big --precision fp8 --layers 8 --forwards 24
    measure layer-16k-skewed $big --layers 8 --forwards 4 --regime burst --skew deepseek-v3
    measured
fi
if has depth; then
    measure depth-94-resident-24 $big --layers 94 --resident-layers 24 --forwards 3
    measure depth-30b-48-layers --model qwen3-30b-a3b --tokens 16K --seq 4K --forwards 8 --skew uniform
    measure depth-30b-8-layers --model qwen3-30b-a3b --layers 8 --tokens 16K --seq 4K --forwards 48 --skew uniform
    measured
fi
if has lengths; then # MFU by tokens and by sequence length; 3 s back to back before the clock starts
    cell="--model qwen3-235b-a22b --layers 8 --skew uniform --warmup 3"
    for t in 4K 16K 32K; do measure tokens-$t-of-4K $cell --tokens $t --seq 4K --forwards 16; done
    for s in 256 1K 16K; do measure tokens-32K-of-$s $cell --tokens 32K --seq $s --forwards 12; done
    measured
fi
if has idle; then
    small="--model qwen3-30b-a3b --tokens 512 --seq 512 --forwards 32 --regime burst --skew uniform"
    measure qwen3-30b-512 $small
    measure qwen3-30b-512-nospans $small --no-spans
    measured
fi
if has trace; then
    measure trace-poisson --model qwen3-30b-a3b --trace "poisson:rate=20,len=uniform(200,1000)" --duration 5 --skew uniform --warmup 1
    measure trace-siblings --model qwen3-30b-a3b --trace "batch:count=40,len=4K,prefix=3K,groups=4" --skew uniform --warmup 1
    measure prefix --model qwen3-30b-a3b --tokens 8K --seq 1K --prefix 3K --forwards 8 --skew uniform --warmup 1
    measured
fi
if has comparators; then if timeout 200 $python "$here/tests/tools/hf_layers.py" 2>&1 | grep transformers; then ok; else bad comparators; fi; fi
echo "$passed passed, $failed failed"
exit $((failed > 0))
