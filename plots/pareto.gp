# blocks by layout: TTFT p90 s  tokens/s per GPU  label; then the front; then its labels
load folder."/style.gp"
set title "Throughput against time to first token\n".subject
set xlabel "TTFT, 90th percentile, s\n "
set ylabel "tokens/s per GPU"
set logscale x
set xrange [least / 1.7:most * 1.15]
set format x "%g"
set xtics (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000)
set yrange [0:*]
set offsets 0, 0, graph 0.06, 0
set grid xtics lc rgb "#eeeeee" lt 1
set key bmargin center horizontal
# nothing lies above and left of the front: its labels go there
plot data index series using 1:2 with steps lw 2 dt 2 lc rgb "black" title "Pareto front", \
     for [i = 0:series - 1] data index i using 1:2 with points pt s(i) ps 1.8 lw 1.5 lc rgb c(i) title columnheader(1), \
     data index series + 1 using 1:2:3 with labels right offset -1, 0.5 font ",12" notitle
