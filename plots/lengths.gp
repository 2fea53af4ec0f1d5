# Throughput and MFU by sequence length: 4K, 16K and 64K tokens a GPU, each as one forward and as a stream of 8; a curve a strategy.
#   gnuplot -e 'data="lengths.tsv"; out="lengths.png"; folder="plots"' plots/lengths.gp
# data: tests/tools/lengths.py table, as tests/gpu/bench_ranks.sh (part lengths) writes it; predicted: another, drawn as thin lines.
# Open points: pp from the first forward's end to the last one's, when its pipeline is full.
if (!exists("folder")) folder = "plots"
load folder."/style.gp"
if (out[strlen(out) - 2:] eq "svg") { set terminal svg size 1600, 820 font "sans,15" background "white" } \
else { set terminal pngcairo size 1600, 820 font "sans,12" }
set output out
set datafile missing "?"
strategies = "dp asyncep ep tp pp"
sizes = "4096 16384 65536"
place(n) = log(n) / log(4) - 3 # 256, 1K, 4K, 16K, 64K: 1 to 5
layers(tokens) = (tokens == 65536 ? 2 : 4) # that were run (tests/tools/lengths.py): throughput is shown as 94 would have it
rows(from, tokens, s) = sprintf("< awk -F'\t' '$1 == %s && $3 == \"%s\"' %s", tokens, s, from)
scaled(tokens, x) = x * (row == 1 ? layers(int(tokens)) / 94e3 : 100)
under = exists("predicted") ? predicted : data
pipeline = words(strategies) # pp
set multiplot layout 2, 6 margins 0.05, 0.99, 0.15, 0.84 spacing 0.025, 0.06 \
    title "Qwen3-235B-A22B's shape, bf16, 2 x H200, by sequence length (throughput as 94 layers would have it)".(exists("predicted") ? "\nthin lines: predicted" : "")
do for [row = 1:2] {
    do for [k = 1:6] {
        tokens = word(sizes, (k + 1) / 2)
        stream = k % 2 == 0
        which = row == 1 ? (stream ? 8 : 5) : (stream ? 9 : 6)
        last = int(place(real(tokens)) + 0.5)
        set xrange [0.7:last + 0.3]
        set xtics ("256" 1, "1K" 2, "4K" 3, "16K" 4, "64K" 5)
        set title (row == 1 ? sprintf("%dK tokens per GPU\n%s", real(tokens) / 1024, stream ? "stream of 8 forwards" : "one forward") : "")
        set ylabel (k > 1 ? "" : row == 1 ? "thousand tokens/s per GPU" : "MFU, % of the datasheet peak") offset 1, 0
        set xlabel (row == 2 ? "tokens per sequence" : "")
        set yrange [0:(row == 1 ? 17 : 75)]
        if (row == 2 && k == 1) { set key at screen 0.5, 0.03 center vertical maxrows 1 } else { unset key }
        plot for [i = 1:(exists("predicted") ? words(strategies) : 0)] rows(under, tokens, word(strategies, i)) using (place($2)):(scaled(tokens, column(which))) \
                 with lines lw 0.9 lc rgb c(i - 1) notitle, \
             for [i = 1:words(strategies)] rows(data, tokens, word(strategies, i)) using (place($2)):(scaled(tokens, column(which))) \
                 with linespoints lw 2 dt d(i - 1) pt s(i - 1) ps 1.1 lc rgb c(i - 1) notitle, \
             rows(data, tokens, word(strategies, pipeline)) using (place($2)):(stream ? scaled(tokens, column(which + 3)) : NaN) \
                 with points pt 12 ps 1.4 lw 1.6 lc rgb "#444444" notitle, \
             for [i = 1:words(strategies)] keyentry with linespoints lw 2 dt d(i - 1) pt s(i - 1) ps 1.1 lc rgb c(i - 1) title word(strategies, i), \
             keyentry with points pt 12 ps 1.4 lw 1.6 lc rgb "#444444" title "pp, full pipeline"
    }
}
unset multiplot
