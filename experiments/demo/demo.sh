#!/usr/bin/env bash
# make demo: plays the demo sweep on a real trace, prints the ranking and draws the figures that say why. Everything goes to one folder.
set -eu
out=${1:-build/demo}
forerun=${FORERUN:-build/forerun}
here=$(dirname "$0")
mkdir -p "$out"
common=(--model qwen3-235b-a22b --machine h200x8 --precision fp8)

echo "== 1. sweep: every strategy and degree over 1,000 requests of the Mooncake conversation trace"
"$forerun" sweep "$here/demo.json" --db "$out/demo.db" --csv "$out/demo.csv" --top 16 --progress

echo
echo "== 2. why: one forward of 16K tokens per GPU, the three layouts side by side"
rm -f "$out/why.db"
for layout in "--strategy tp" "--strategy ep" "--strategy asyncep"; do
    # shellcheck disable=SC2086
    "$forerun" simulate "${common[@]}" $layout --tokens 16K --seq 4K --forwards 2 --db "$out/why.db" >"$out/last.txt"
    sed -n '1,40p' "$out/last.txt"
    echo
done
echo "== 3. how it scales: tokens per forward, sequence length"
"$forerun" sweep "$here/curves.json" --db "$out/curves.db" --top 3 --progress >"$out/curves.txt"
tail -n 3 "$out/curves.txt"

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
