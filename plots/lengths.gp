# Throughput and MFU by sequence length and tokens a GPU: a column of panels for each number of tokens, a curve a strategy.
#   gnuplot -e 'data="lengths.tsv"; out="lengths.png"; folder="plots"' plots/lengths.gp
# data: tests/tools/lengths.py table, as tests/gpu/bench_ranks.sh (part lengths) writes it
if (!exists("folder")) folder = "plots"
load folder."/style.gp"
if (out[strlen(out) - 2:] eq "svg") { set terminal svg size 1150, 900 font "sans,12" background "white" } \
else { set terminal pngcairo size 1150, 900 font "sans,10" }
set output out
set datafile missing "?"
strategies = "dp asyncep ep tp pp"
tokens = "4096 16384 65536"
place(n) = (n == 256 ? 1 : n == 1024 ? 2 : n == 4096 ? 3 : n == 16384 ? 4 : 5)
set xrange [0.7:5.3]
set xtics ("256" 1, "1K" 2, "4K" 3, "16K" 4, "64K" 5)
set multiplot layout 3, 3 margins 0.07, 0.985, 0.06, 0.91 spacing 0.045, 0.07 \
    title "Qwen3-235B-A22B's shape, 4 layers, bf16, 2 x H200: by sequence length (x) and tokens a GPU (columns)"
rows = "8 9 6"
do for [row = 1:3] {
    do for [k = 1:3] {
        t = int(word(tokens, k))
        which = int(word(rows, row))
        scale = which == 8 ? 1e-3 : 100
        set yrange [0:*]
        if (which == 8) { set yrange [0:250] }
        if (which != 8) { set yrange [0:70] }
        set title (row == 1 ? sprintf("%dK tokens a GPU", t / 1024) : "") offset 0, -0.6
        set ylabel (k > 1 ? "" : which == 8 ? "K tokens/s a GPU, stream" : which == 9 ? "MFU %, stream" : "MFU %, one forward")
        if (row == 3 && k == 1) { set key bottom right horizontal maxrows 3 } else { unset key }
        plot for [i = 1:words(strategies)] \
             sprintf("< awk -F'\\t' '$1 == %d && $3 == \"%s\"' %s", t, word(strategies, i), data) using (place(int($2))):(column(which) * scale) \
             with linespoints lw 1.6 dt d(i - 1) pt s(i - 1) ps 0.9 lc rgb c(i - 1) title word(strategies, i)
    }
}
unset multiplot
