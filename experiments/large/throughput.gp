# Four GPUs, cell by cell: measured, and predicted before the run.
#   gnuplot -e 'data="throughput.dat"; out="throughput.png"; folder="plots"' experiments/large/throughput.gp
# data: compare.py writes it: panel, place, name, group (its first cell), thousand tokens/s a GPU measured, predicted, low, high
if (!exists("folder")) folder = "plots"
load folder."/style.gp"
set terminal pngcairo size 1280, 960 font "sans,12"
set output out
set boxwidth 0.75
set yrange [0:*]
set xtics rotate by -40 left scale 0
set ylabel "thousand tokens/s per GPU"
set multiplot layout 2, 1 margins 0.07, 0.91, 0.2, 0.9 spacing 0.08, 0.22 \
    title "Four H200s, Qwen3-235B's shape, sustained, as 94 layers would have it"
rows(panel) = sprintf("< awk -F'\\t' '$1 == %d' %s", panel, data)
do for [panel = 0:1] {
    if (panel == 1) { set key at screen 0.5, 0.02 center vertical maxrows 1 } else { unset key }
    plot rows(panel) using 2:5:xtic(3) with boxes lc rgb b(4) title "measured", \
         rows(panel) using 2:6:7:8 with yerrorbars pt 7 ps 0.8 lw 1.5 lc rgb c(3) title "predicted before the run, with its interval", \
         rows(panel) using ($2 - 0.45):(0):4 with labels left offset 0, graph 1.03 notitle
}
unset multiplot
