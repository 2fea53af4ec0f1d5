#!/usr/bin/env bash
# The engine on one Hopper GPU: what it stands on, its logits against transformers, then its speed.
#   tests/gpu/test_engine.sh [ENGINE [OUT]]       PARTS="doctor logits speed depth idle trace comparators" picks parts
# The libraries are those of CUDA 13 that the program was built against; where PyTorch brings them, its folders come first.
set -u
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/engine} parts=${PARTS:-doctor logits speed depth idle trace}
python=${PYTHON:-python3} here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
for d in $($python -c 'import os, nvidia; print(*[os.path.join(p, x, "lib") for p in nvidia.__path__ for x in os.listdir(p)])' 2>/dev/null); do
    [ -d "$d" ] && LD_LIBRARY_PATH="$d:${LD_LIBRARY_PATH:-}"
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
failed=0
has() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
line() { # NAME JSON: one line of the result
    $python - "$1" "$2" <<'PY'
import json, sys
try:
    r = json.load(open(sys.argv[2]))
except Exception as e:
    print(f"{sys.argv[1]:<34} no result: {e}"); sys.exit()
d, p, layers = r["device"], r.get("predicted") or {}, r["layers"]
f, pf = r["forward_s"] * 1e3, (p.get("forward_s") or 0) * 1e3
print(f"{sys.argv[1]:<34} forward {f:9.3f} ms (predicted {pf:9.3f}), layer {f/layers:7.3f}, MFU {r['mfu']*100:5.1f} %, "
      f"idle {100*r['idle_s']/max(r['forward_s'],1e-9):5.2f} %, late {100*d['host_late_s']/max(r['forward_s']*r['forwards'],1e-9):5.2f} %, "
      f"{d['sm_mhz']:.0f} MHz, {d['watts']:.0f} W, routing off {r['routing_error']}")
PY
}
measure() { # NAME flags...
    local name=$1; shift
    if ! timeout 100 "$engine" run --machine h200x1 --strategy dp --json --db "$out/engine.db" "$@" >"$out/$name.json" 2>"$out/$name.err"; then
        echo "$name FAILED: $(tail -n 3 "$out/$name.err")"; failed=$((failed + 1)); return
    fi
    line "$name" "$out/$name.json"
}
has doctor && { timeout 30 "$engine" doctor || failed=$((failed + 1)); }
has logits && { timeout 280 $python "$here/tests/tools/hf_logits.py" --engine "$engine" --dir "$out/hf" 2>&1 | grep -v "Loading weights\|Writing model" || failed=$((failed + 1)); }
big="--model qwen3-235b-a22b --tokens 16K --seq 4K --skew uniform"
has speed && {
    measure layer-16k-burst $big --layers 8 --forwards 4 --regime burst
    measure layer-16k-burst-nospans $big --layers 8 --forwards 4 --regime burst --no-spans
    measure layer-16k-sustained $big --layers 8 --forwards 24 --regime sustained
}
has depth && measure depth-94-resident-24 $big --layers 94 --resident-layers 24 --forwards 3 --regime sustained
has idle && {
    measure qwen3-30b-512 --model qwen3-30b-a3b --tokens 512 --seq 512 --forwards 32 --regime burst --skew uniform
    measure qwen3-30b-512-nospans --model qwen3-30b-a3b --tokens 512 --seq 512 --forwards 32 --regime burst --skew uniform --no-spans
    measure qwen3-30b-16k --model qwen3-30b-a3b --tokens 16K --seq 4K --forwards 8 --regime sustained --skew uniform
}
has trace && measure trace --model qwen3-30b-a3b --trace "poisson:rate=20,len=uniform(200,1000)" --duration 5 --skew uniform --warmup 1
has comparators && timeout 200 $python "$here/tests/tools/hf_layers.py"
echo "$failed failed"
exit $failed
