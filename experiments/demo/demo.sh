#!/usr/bin/env bash
# make demo: plays the demo sweep on a real trace, prints the ranking and draws the figures that say why. Everything goes to one folder.
set -eu
out=${1:-build/demo}
forerun=${FORERUN:-build/forerun}
here=$(dirname "$0")
mkdir -p "$out"
common=(--model qwen3-235b-a22b --machine h200x8 --precision fp8)

echo "== 1. sweep: every strategy and degree over 1,000 requests of the Mooncake conversation trace"
"$forerun" sweep "$here/demo.json" --db "$out/demo.db" --anew --csv "$out/demo.csv" --top 16 --progress

echo
echo "== 2. why: one forward of 16K tokens per GPU, the three layouts one after the other"
rm -f "$out/why.db"
for layout in "--strategy tp" "--strategy ep" "--strategy asyncep"; do
    # shellcheck disable=SC2086
    "$forerun" simulate "${common[@]}" $layout --tokens 16K --seq 4K --forwards 2 --db "$out/why.db" >"$out/last.txt"
    sed '/^memory per GPU/,$d' "$out/last.txt"
    echo
done
echo "== 3. how it scales: tokens per forward, sequence length, faster links (in full: $out/curves.txt)"
"$forerun" sweep "$here/curves.json" --db "$out/curves.db" --anew --top 3 --progress >"$out/curves.txt"
echo "the fastest by workload, tokens/s per GPU:"
awk '/^qwen/ && / tok\/s\/GPU/ { print "  " $0; next }
     /^qwen/ { group = $0 }
     substr($0, 4, 3) == "  1" {
         layout = substr($0, 8, 24); sub(/ +$/, "", layout)
         printf "  %s: %s, %d\n", group, layout, substr($0, 38, 9)
     }' "$out/curves.txt" |
    sed 's/qwen3-235b-a22b fp8 on h200x8, //; s/, routing deepseek-v3//; s/ tokens per GPU in sequences of / tokens, sequences of /; s/ tok.s.GPU//'

echo
echo "== 4. figures in $out"
plot() { # FIGURE DB NAME
    if "$forerun" plot "$1" "$2" -o "$out/$3.png"; then echo "   $out/$3.png"; fi
}
plot throughput "$out/demo.db" throughput
plot pareto "$out/demo.db" pareto
plot memory "$out/demo.db" memory
plot breakdown "$out/demo.db" breakdown
plot mfu "$out/curves.db" mfu
plot exposed "$out/curves.db" exposed
plot gantt "$out/why.db" gantt
plot critical "$out/why.db" critical
plot whatif "$out/curves.db" whatif
"$forerun" trace "$out/why.db" -o "$out/why.perfetto.json" && echo "   $out/why.perfetto.json (open in ui.perfetto.dev)"
