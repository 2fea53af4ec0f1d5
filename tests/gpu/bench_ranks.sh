#!/usr/bin/env bash
# What gathering experts costs on two GPUs, and streaming them from the host on one.
#   tests/gpu/bench_ranks.sh [ENGINE [OUT]]       PARTS="burst sustained knee nccl offload lengths"
#   burst, sustained   asyncep (copy engines) and dwdp against dp with all experts local, 16K and 32K tokens a GPU; burst is
#                      one forward after a second of rest: eight in a row (2 s) are at the power cap already
#   knee               2K to 12K tokens beside the closed form: sum of max(C, G) over layers; C is dp's layer, G what the
#                      remote half of a layer takes at the measured link rate
#   nccl               asyncep with the collective transport beside copy engines
#   offload            transfers at the PCIe rate when they bound, and the number of tokens where compute takes over
#   lengths            dp, asyncep, ep, tp and pp by sequence length (256 to 64K) and tokens a GPU (4K, 16K, 64K), 4 layers (64K: 2): one
#                      forward and streams of 8, each after a rest, all of a strategy as one trace
#                      (tests/tools/lengths.py; plots/lengths.gp draws the table); STRATEGIES="dp ..." KINDS="short long"
# Qwen3-235B-A22B's shape, 16 layers with 8 sets of weights; every line says burst or sustained.
set -u
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/bench-ranks}
parts=${PARTS:-burst knee nccl offload sustained}
python=${PYTHON:-python3} warm=${WARM:-10} knees=${KNEES:-2K 4K 6K 8K 12K} crossings=${CROSSINGS:-4K 16K 32K 64K 96K 128K}
mkdir -p "$out"
has() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
big="--model qwen3-235b-a22b --layers 16 --resident-layers 8 --skew uniform --no-kv-cache"
# Cells of a part run in one process, which starts GPUs and libraries once; those that have a result already are left out.
list=$out/cells limit=${LIMIT:-600}
cell() { # NAME flags...
    echo "$1 | ${*:2}" >>"$list"
}
then_line() { # NAME [REFERENCE]
    echo "$*" >>"$list.lines"
}
play() { # runs what was asked for, then prints its lines
    for try in 1 2 3; do # a device that does not answer ends the process: once more for the rest
        local room=$((limit - SECONDS))
        [ $room -lt 10 ] && break
        timeout -k 10 $room "$engine" run --no-predict --timeout 20 --json --cells "$list" --results "$out" --limit $((room - 6)) >"$list.log" 2>&1 && break
        grep -q "left for want of time" "$list.log" && break
    done
    grep -h FAILED "$list.log"
    [ -s "$list.lines" ] && while read -r name reference; do [ -s "$out/$name.json" ] && line "$name" "$reference"; done <"$list.lines"
    rm -f "$list" "$list.lines"
}
rm -f "$list" "$list.lines"
line() { # NAME [REFERENCE]: one line, and its share of the reference's throughput
    $python - "$out/$1.json" "${2:+$out/$2.json}" <<'PY'
import json, os, sys
r = json.load(open(sys.argv[1]))
name = os.path.basename(sys.argv[1])[:-5]
text = f"{name:<28} forward {r['forward_s']*1e3:9.3f} ms, MFU {r['mfu']*100:5.2f} %"
text += "".join(f", {k} {r[k+'_s']*1e3:.3f}" for k in ("compute", "exposed_comm", "wait", "idle"))
text += ", " + "; ".join(f"{x['sm_mhz']:.0f} MHz {x['watts']:.0f} W" for x in r.get("ranks", []))
if sys.argv[2] and os.path.exists(sys.argv[2]):
    d = json.load(open(sys.argv[2]))
    text += f", {100*d['forward_s']/r['forward_s']:6.2f} % of {os.path.basename(sys.argv[2])[:-5]}"
print(text, flush=True)
PY
}
pair() { # TAG flags...: dp, then the others against it
    local tag=$1; shift
    cell "$tag-dp" $big --machine h200x2 --strategy dp "$@"
    then_line "$tag-dp"
    for s in ${LAYOUTS-asyncep dwdp}; do
        cell "$tag-$s" $big --machine h200x2 --strategy "$s" "$@"
        then_line "$tag-$s" "$tag-dp"
    done
}
if has burst; then
    for t in 16K 32K; do pair "burst-$t" --regime burst --warmup 0 --tokens $t --seq 4K --forwards 1; done
    play
fi
if has knee; then
    for t in $knees; do LAYOUTS=asyncep pair "knee-$t" --regime burst --warmup 0 --tokens "$t" --seq 2K --forwards 8; done
    play
    $python - "$out" "${LINK_GBS:-390}" $knees <<'PY'
import json, sys
# closed form (arXiv 2605.02960 section 6.2, first layer resident): 15 layers of max(C, G), then C of the last
gather = 128 * 3 * 4096 * 1536 * 2 / 2 / (float(sys.argv[2]) * 1e9)
for t in sys.argv[3:]:
    try: d, a = (json.load(open(f"{sys.argv[1]}/knee-{t}-{s}.json"))["forward_s"] for s in ("dp", "asyncep"))
    except (OSError, ValueError): continue
    c = d / 16
    closed = 15 * max(c, gather) + c
    print(f"knee {t:>3}: layer {c*1e3:.3f} ms, gather {gather*1e3:.3f} ms, closed form {closed*1e3:.2f} ms, measured {a*1e3:.2f} ms ({100*(a/closed-1):+.1f} %)")
PY
fi
if has nccl; then
    LAYOUTS= pair nccl-16K --regime burst --warmup 0 --tokens 16K --seq 4K --forwards 8
    for g in ce nccl nccl-ce; do
        cell "nccl-16K-$g" $big --machine h200x2 --strategy asyncep --gather $g --regime burst --warmup 0 --tokens 16K --seq 4K --forwards 8
        then_line "nccl-16K-$g" nccl-16K-dp
    done
    play
fi
if has offload; then
    off="--machine h200x1 --model qwen3-30b-a3b --layers 12 --resident-layers 4 --skew uniform --no-kv-cache --regime burst --warmup 0"
    for t in $crossings; do
        cell "offload-$t-dp" $off --strategy dp --tokens "$t" --seq 4K --forwards 4
        cell "offload-$t" $off --strategy offload --tokens "$t" --seq 4K --forwards 4
        then_line "offload-$t-dp"
        then_line "offload-$t" "offload-$t-dp"
    done
    cell offload-2-slots $off --strategy offload --slots 2 --tokens 4K --seq 4K --forwards 4
    then_line offload-2-slots offload-4K-dp
    play
    $python - "$out" $crossings <<'PY'
import json, sys
layer = 128 * 3 * 2048 * 768 * 2
def seconds(name):
    try: return json.load(open(f"{sys.argv[1]}/{name}.json"))["forward_s"]
    except (OSError, ValueError): return None
for t in sys.argv[2:]:
    d, a = seconds(f"offload-{t}-dp"), seconds(f"offload-{t}")
    if not d or not a: continue
    # a stream: the copies of a forward run behind those of the one before, 12 layers each
    closed = max(d, 12 * layer / 55.4e9)
    print(f"offload {t:>4}: {12*layer/a*1e-9:.2f} GB/s over PCIe, layer {d/12*1e3:.3f} ms, its copy {layer/55.4e9*1e3:.3f} ms at 55.4 GB/s: closed form {closed*1e3:.2f} ms, "
          f"measured {a*1e3:.2f} ({100*(a/closed-1):+.1f} %); compute takes over at {float(t[:-1])*layer/55.4e9/(d/12):.0f}K tokens")
s = seconds("offload-2-slots")
if s: print(f"offload, two slots: {12*layer/s*1e-9:.2f} GB/s over PCIe, {100*12*layer/s/55.4e9:.1f} % of 55.4")
PY
fi
if has sustained; then # turn by turn: cards warm up
    for turn in 1 2; do
        for t in 16K 32K; do LAYOUTS="asyncep dwdp" pair "sustained-$t-$turn" --regime sustained --warmup "$warm" --tokens $t --seq 4K --forwards 16; done
    done
    # fewer bytes: experts of others that a rank holds besides; the same bytes in slices
    for keep in 16 32 48; do
        cell sustained-16K-keep$keep $big --machine h200x2 --strategy asyncep --gather-keep $keep --regime sustained --warmup "$warm" --tokens 16K --seq 4K --forwards 16
        then_line sustained-16K-keep$keep sustained-16K-2-dp
    done
    cell sustained-16K-chunks $big --machine h200x2 --strategy asyncep --gather-chunk 8M --regime sustained --warmup "$warm" --tokens 16K --seq 4K --forwards 16
    then_line sustained-16K-chunks sustained-16K-2-dp
    play
fi
if has lengths; then
    tool="$python $(dirname "$0")/../tools/lengths.py" strategies=${STRATEGIES:-dp asyncep ep tp pp} kinds=${KINDS:-short long}
    shape="--machine h200x2 --model qwen3-235b-a22b --resident-layers 2 --skew uniform --fit-rounds 0 --no-kv-cache --regime burst --warmup 0.2"
    for kind in $kinds; do
        $tool trace "$kind" >"$out/$kind.csv"
        layers=4 budget=$($tool budget "$kind")
        [ "$kind" = long ] && layers=2
        for s in $strategies; do
            flags="--strategy $s --layers $layers --budget $budget"
            # a pipeline's one group has both GPUs' tokens
            [ "$s" = pp ] && flags="--strategy pp --micro-batches $([ "$kind" = long ] && echo 2 || echo 4) --layers $layers --budget $((2 * budget))"
            rm -f "$out/$kind-$s.db" "$out/$kind-$s.json"
            cell "$kind-$s" "$shape $flags --trace $out/$kind.csv --db $out/$kind-$s.db"
        done
    done
    play
    $tool table "$out" | tee "$out/lengths.tsv" | grep -v '?.*?.*?.*?.*?.*?.*?.*?' | { column -t 2>/dev/null || cat; }
fi
