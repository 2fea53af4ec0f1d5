# Throughput and MFU by sequence length: one forward of 4K tokens a GPU, then one forward, a stream of 8 and a stream in steady
# state of 16K tokens a GPU (at a length of 64K: 64K tokens), a curve a strategy.
#   gnuplot -e 'data="lengths.tsv"; out="lengths.png"; folder="plots"' plots/lengths.gp
# data: tests/tools/lengths.py table, as tests/gpu/bench_ranks.sh (part lengths) writes it; predicted: another, drawn as thin lines
if (!exists("folder")) folder = "plots"
load folder."/style.gp"
if (out[strlen(out) - 2:] eq "svg") { set terminal svg size 1200, 640 font "sans,12" background "white" } \
else { set terminal pngcairo size 1200, 640 font "sans,10" }
set output out
set datafile missing "?"
strategies = "dp asyncep ep tp pp"
place(n) = (n == 256 ? 1 : n == 1024 ? 2 : n == 4096 ? 3 : n == 16384 ? 4 : 5)
layers(n) = (n == 65536 ? 2 : 4) # that were run: throughput is shown per layer of 94
rows(from, least, most, s) = sprintf("< awk -F'\t' '$1 >= %d && $1 <= %d && $3 == \"%s\"' %s", least, most, s, from)
scaled(n, x) = x * (row == 1 ? layers(int(n)) / 94e3 : 100)
under = exists("predicted") ? predicted : data
set xrange [0.7:5.3]
set xtics ("256" 1, "1K" 2, "4K" 3, "16K" 4, "64K" 5)
set multiplot layout 2, 4 margins 0.055, 0.99, 0.06, 0.87 spacing 0.035, 0.09 \
    title "Qwen3-235B-A22B's shape, bf16, 2 x H200, by sequence length: tokens/s a GPU as 94 layers would have it, and MFU".(exists("predicted") ? " (thin: predicted)" : "")
titles = "'4K tokens a GPU, one forward' '16K (64K: 64K), one forward' '16K (64K: 64K), stream of 8' '16K (64K: 64K), full pipeline'"
array of_rate[4] = [5, 5, 8, 11]
array of_mfu[4] = [6, 6, 9, 12]
do for [row = 1:2] {
    do for [k = 1:4] {
        which = row == 1 ? of_rate[k] : of_mfu[k]
        set title (row == 1 ? word(titles, k) : "") offset 0, -0.6
        set ylabel (k > 1 ? "" : row == 1 ? "K tokens/s a GPU" : "MFU %") offset 1, 0
        set yrange [0:(row == 1 ? 17 : 75)]
        if (row == 2 && k == 1) { set key bottom right horizontal maxrows 3 } else { unset key }
        least = k == 1 ? 0 : 10000
        most = k == 1 ? 9999 : 99999
        plot for [i = 1:words(strategies)] rows(under, least, most, word(strategies, i)) using (place(int($2))):(scaled($2, column(which))) \
                 with lines lw 0.7 lc rgb c(i - 1) notitle, \
             for [i = 1:words(strategies)] rows(data, least, most, word(strategies, i)) using (place(int($2))):(scaled($2, column(which))) \
                 with linespoints lw 1.6 dt d(i - 1) pt s(i - 1) ps 0.9 lc rgb c(i - 1) notitle, \
             for [i = 1:words(strategies)] keyentry with linespoints lw 1.6 dt d(i - 1) pt s(i - 1) ps 0.9 lc rgb c(i - 1) title word(strategies, i)
    }
}
unset multiplot
