# What compute loses beside transfers, by the share of time that they run: slow-down, and the SM clock beneath it. A panel a kind of
# op, a curve a kind of transfer, sustained; the open points at the right are bursts.
#   gnuplot -e 'data="interference.tsv"; out="interference.png"; folder="plots"' plots/interference.gp
# data: tests/tools/interference.py TABLE
if (!exists("folder")) folder = "plots"
load folder."/style.gp"
if (out[strlen(out) - 2:] eq "svg") { set terminal svg size 1500, 780 font "sans,15" background "white" } \
else { set terminal pngcairo size 1500, 780 font "sans,12" }
set output out
set datafile missing "?"
victims = "gemm grouped attention memory"
titles = "'dense product' 'grouped product' 'attention' 'memory-bound'"
aggressors = "pull nccl h2d"
names = "'pulls both ways' 'NCCL all-gather' 'host to device'"
open(i) = i == 1 ? 6 : i == 2 ? 4 : 8
rows(v, a, regime) = sprintf("< awk -F'\t' '$1 == \"%s\" && $2 == \"%s\" && $3 == 2 && $4 == \"%s\"' %s", v, a, regime, data)
set xtics ("0" 0, "25 %%" 0.25, "50 %%" 0.5, "75 %%" 0.75, "100 %%" 1)
set xrange [-0.06:1.24]
set multiplot layout 2, 4 margins 0.065, 0.99, 0.15, 0.88 spacing 0.03, 0.08 \
    title "Compute beside transfers, 2 x H200, sustained (open points at the right: bursts)"
do for [row = 1:2] {
    do for [k = 1:4] {
        v = word(victims, k)
        set title (row == 1 ? word(titles, k) : "") offset 0, -0.6
        set ylabel (k > 1 ? "" : row == 1 ? "takes longer by, %" : "SM clock, MHz") offset 1, 0
        if (row == 1) { set yrange [-2:34]; set ytics 5 } else { set yrange [1150:2030]; set ytics 200 }
        set xlabel (row == 2 ? "share of time that transfers run" : "")
        if (row == 2 && k == 1) { set key at screen 0.5, 0.03 center vertical maxrows 1 } else { unset key }
        plot for [i = 1:3] rows(v, word(aggressors, i), "sustained") using 5:(row == 1 ? column(8) : column(12)) \
                 with linespoints lw 2 dt d(i - 1) pt s(i - 1) ps 1.2 lc rgb c(i - 1) title word(names, i), \
             for [i = 1:3] rows(v, word(aggressors, i), "burst") using (1.1):(row == 1 ? column(8) : column(12)) \
                 with points pt open(i) ps 1.4 lw 1.6 lc rgb c(i - 1) notitle, \
             rows(v, "pull", "sustained") using (0):(row == 1 ? 0 : column(11)) with points pt 1 lc rgb "#444444" notitle
    }
}
unset multiplot
