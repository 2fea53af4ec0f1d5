#!/usr/bin/env bash
# What strategies cost on two GPUs and more, and streaming experts from the host on one.
#   tests/gpu/bench_ranks.sh [ENGINE [OUT]]       PARTS="burst sustained knee nccl offload lengths whole"
#   burst, sustained   asyncep (copy engines) and dwdp against dp with all experts local, 16K and 32K tokens a GPU; burst is
#                      one forward after a second of rest: eight in a row (2 s) are at the power cap already. Sustained has,
#                      at 16K, experts of others that a rank holds besides (--gather-keep), and pulls in slices
#   knee               2K to 12K tokens beside the closed form: sum of max(C, G) over layers; C is dp's layer, G what the
#                      remote half of a layer takes at the measured link rate
#   nccl               asyncep with the collective transport beside copy engines
#   offload            transfers at the PCIe rate when they bound, and the number of tokens where compute takes over
#   lengths            dp, asyncep, ep, tp and pp by sequence length (256 to 64K) and tokens a GPU (4K, 16K, 64K), 4 layers (64K: 2): one
#                      forward and streams of 8, each after a rest, all of a strategy as one trace
#                      (tests/tools/lengths.py; plots/lengths.gp draws the table); STRATEGIES="dp pp2 pp4 ..." SETS="4k 16k 64k"
#   whole              cells of experiments/engine-h200x2/whole.txt: all 94 layers; WHOLE="two|four|four16" WHOLE_ONLY="NAME ...";
#                      not of the default parts (10 s a cell)
# All parts run in one process, which starts GPUs and libraries once; what has a result in OUT already is left out, so that a run
# cut off (LIMIT=SECONDS) goes on. PREDICT=1: what the simulator says of the same cells, without a GPU. Qwen3-235B-A22B's shape,
# 16 layers with 8 sets of weights (RESIDENT); every line says burst or sustained. WARM, FORWARDS, TURNS: seconds back to back
# before the clock, forwards, and turns of the sustained cells.
set -u
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/bench-ranks} here=$(dirname "$0")
parts=${PARTS:-burst knee nccl offload lengths sustained}
python=${PYTHON:-python3} warm=${WARM:-10} knees=${KNEES:-2K 4K 6K 8K 12K} crossings=${CROSSINGS:-4K 16K 32K 64K 96K 128K}
turns=${TURNS:-1 2} forwards=${FORWARDS:-16} keeps=${KEEPS-16 32 48} loads=${LOADS:-16K 32K} layouts=${LAYOUTS-asyncep dwdp}
strategies=${STRATEGIES:-dp asyncep ep tp pp2 pp4} sets=${SETS:-4k 16k 64k}
mkdir -p "$out"
big="--machine h200x2 --model qwen3-235b-a22b --layers 16 --resident-layers ${RESIDENT:-8} --skew uniform --no-kv-cache"
list=$out/cells limit=${LIMIT:-3600}
cell() { # NAME flags...
    echo "$1 | ${*:2}" >>"$list"
}
then_line() { # NAME [REFERENCE]
    echo "$*" >>"$list.lines"
}
rm -f "$list" "$list.lines"
line() { # NAME [REFERENCE]: one line, and its share of the reference's throughput
    $python - "$out/$1.json" "${2:+$out/$2.json}" <<'PY'
import json, os, sys
r = json.load(open(sys.argv[1]))
name = os.path.basename(sys.argv[1])[:-5]
text = f"{name:<28} forward {r['forward_s']*1e3:9.3f} ms, MFU {r['mfu']*100:5.2f} %"
text += "".join(f", {k} {r[k+'_s']*1e3:.3f}" for k in ("compute", "exposed_comm", "wait", "bubble", "idle"))
text += "".join(f"; {x['sm_mhz']:.0f} MHz {x['watts']:.0f} W" for x in r.get("ranks", []))
text += f"; {max(x['memory_bytes'] for x in r['ranks'])*1e-9:.2f} GB (layout {r['memory_per_gpu_bytes']*1e-9:.2f})" if r.get("ranks") else ""
if sys.argv[2] and os.path.exists(sys.argv[2]):
    d = json.load(open(sys.argv[2]))
    text += f", {100*d['forward_s']/r['forward_s']:6.2f} % of {os.path.basename(sys.argv[2])[:-5]}"
print(text, flush=True)
PY
}
pair() { # TAG "LAYOUT ..." flags...: dp, then the others against it
    local tag=$1 others=$2; shift 2
    cell "$tag-dp" $big --strategy dp "$@"
    then_line "$tag-dp"
    for s in $others; do
        cell "$tag-$s" $big --strategy "$s" "$@"
        then_line "$tag-$s" "$tag-dp"
    done
}

burst_cells() {
    for t in $loads; do pair "burst-$t" "$layouts" --regime burst --warmup 0 --tokens $t --seq 4K --forwards 1; done
}

knee_cells() {
    for t in $knees; do pair "knee-$t" asyncep --regime burst --warmup 0 --tokens "$t" --seq 2K --forwards 8; done
}
knee_table() {
    $python - "$out" "${LINK_GBS:-390}" $knees <<'PY'
import json, sys
# closed form (arXiv 2605.02960 section 6.2, first layer resident): 15 layers of max(C, G), then C of the last
gather = 128 * 3 * 4096 * 1536 * 2 / 2 / (float(sys.argv[2]) * 1e9)
for t in sys.argv[3:]:
    try: dp, asyncep = (json.load(open(f"{sys.argv[1]}/knee-{t}-{s}.json")) for s in ("dp", "asyncep"))
    except (OSError, ValueError): continue
    d, a = dp["forward_s"], asyncep["forward_s"]
    c = d / 16
    closed = 15 * max(c, gather) + c
    print(f"knee {t:>3}: layer {c*1e3:.3f} ms, gather {gather*1e3:.3f} ms, closed form {closed*1e3:.2f} ms, measured {a*1e3:.2f} ms ({100*(a/closed-1):+.1f} %)")
    mhz = [r["clock_mhz"] for r in (dp, asyncep)]
    busy = ", ".join(f"{k} {100*(asyncep['busy_s'][k]/v-1):+.1f} %" for k, v in dp["busy_s"].items() if v and k != "host")
    print(f"          dp {mhz[0]:.0f} MHz, asyncep {mhz[1]:.0f} ({100*(mhz[0]/mhz[1]-1):+.1f} % of time); a kind of op takes longer by: {busy}")
PY
}

nccl_cells() {
    pair nccl-16K "" --regime burst --warmup 0 --tokens 16K --seq 4K --forwards 8
    for g in ce nccl nccl-ce; do
        cell "nccl-16K-$g" $big --strategy asyncep --gather $g --regime burst --warmup 0 --tokens 16K --seq 4K --forwards 8
        then_line "nccl-16K-$g" nccl-16K-dp
    done
}

offload_cells() {
    off="--machine h200x1 --model qwen3-30b-a3b --layers 12 --resident-layers 4 --skew uniform --no-kv-cache --regime burst --warmup 0"
    for t in $crossings; do
        cell "offload-$t-dp" $off --strategy dp --tokens "$t" --seq 4K --forwards 4
        cell "offload-$t" $off --strategy offload --tokens "$t" --seq 4K --forwards 4
        then_line "offload-$t-dp"
        then_line "offload-$t" "offload-$t-dp"
    done
    cell offload-2-slots $off --strategy offload --slots 2 --tokens 4K --seq 4K --forwards 4
    then_line offload-2-slots offload-4K-dp
}
offload_table() {
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
}

sustained_cells() { # turn by turn: cards warm up
    held="--regime sustained --warmup $warm --forwards $forwards --seq 4K"
    for turn in $turns; do
        for t in $loads; do pair "sustained-$t-$turn" "$layouts" $held --tokens $t; done
    done
    # fewer bytes: experts of others that a rank holds besides; the same bytes in slices
    for keep in $keeps; do
        cell sustained-16K-keep$keep $big --strategy asyncep --gather-keep $keep $held --tokens 16K
        then_line sustained-16K-keep$keep "sustained-16K-${turn}-dp"
    done
    [ -z "$keeps" ] && return
    cell sustained-16K-chunks $big --strategy asyncep --gather-chunk 8M $held --tokens 16K
    then_line sustained-16K-chunks "sustained-16K-${turn}-dp"
}

lengths_cells() {
    tool="$python $here/../tools/lengths.py"
    shape="--machine h200x2 --model qwen3-235b-a22b --resident-layers 2 --skew uniform --fit-rounds 0 --no-kv-cache --regime burst --warmup 0.2"
    for set in $sets; do $tool trace "$set" >"$out/$set.csv"; done
    for s in $strategies; do
        for set in $sets; do
            [ "$set-$s" = 64k-pp4 ] && continue # sequences of 64K: two make a forward
            budget=$($tool budget "$set") layers=$($tool layers "$set")
            flags="--strategy $s --layers $layers --budget $budget"
            # a pipeline's one group has both GPUs' tokens
            case $s in pp*) flags="--strategy pp --micro-batches ${s#pp} --layers $layers --budget $((2 * budget))" ;; esac
            [ -s "$out/$set-$s.json" ] || rm -f "$out/$set-$s.db"
            cell "$set-$s" "$shape $flags --trace $out/$set.csv --db $out/$set-$s.db"
        done
    done
}
lengths_table() {
    $tool table "$out" >"$out/lengths.tsv"
    cut -f 1-6,8,9,11,12,18 "$out/lengths.tsv" | { column -t 2>/dev/null || cat; }
}

whole_cells() {
    local name part flags machine
    while IFS='|' read -r name part flags; do
        name=${name// /} part=${part// /} machine=h200x4
        [[ -z $name || $name == \#* || ! $part =~ ^(${WHOLE:-two})$ ]] && continue
        [[ -n ${WHOLE_ONLY:-} && " $WHOLE_ONLY " != *" $name "* ]] && continue
        [ "$part" = two ] && machine=h200x2
        # a round that learns the routing is the warm-up; WHOLE_FLAGS stand behind the cell's own
        cell "$name" --machine $machine $flags --fit-rounds 1 --warmup 0 --db "$out/$name.db" ${WHOLE_FLAGS:-}
        then_line "$name"
    done <"$here/../../experiments/engine-h200x2/whole.txt"
}

for part in $parts; do "${part}_cells"; done
measure() {
    local room
    for _ in 1 2 3; do # a device that does not answer ends the process: once more for the rest
        room=$((limit - SECONDS))
        [ $room -lt 10 ] && break
        timeout -k 10 $room "$engine" run --no-predict --timeout 20 --json --cells "$list" --results "$out" --limit $((room - 6)) >"$list.log" 2>&1 && break
        grep -q "left for want of time" "$list.log" && break
    done
    grep -h FAILED "$list.log"
}
predict() {
    local name flags
    while IFS='|' read -r name flags; do
        # shellcheck disable=SC2086
        "$engine" simulate $flags --json >"$out/${name// /}.json" || echo "FAILED ${name// /}"
    done < <(sed -E 's/--(fit-rounds|warmup) [^ ]+//g' "$list")
}
if [ -n "${PREDICT:-}" ]; then predict; else measure; fi
[ -s "$list.lines" ] && while read -r name reference; do [ -s "$out/$name.json" ] && line "$name" "$reference"; done <"$list.lines"
for part in $parts; do
    [ "$(type -t "${part}_table")" = function ] && "${part}_table"
done
rm -f "$list" "$list.lines"
