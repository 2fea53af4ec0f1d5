# blocks by layout: TTFT p90 s  tokens/s per GPU  label; the last block is the front
load folder."/style.gp"
set title "Throughput against time to first token\n".subject
set xlabel "TTFT, 90th percentile, s"
set ylabel "tokens/s per GPU"
set logscale x 2
set format x "%g"
set yrange [0:*]
set grid xtics lc rgb "#eeeeee" lt 1
set key outside right center
plot data index series using 1:2 with steps lw 2 dt 2 lc rgb "black" title "Pareto front", \
     for [i = 0:series - 1] data index i using 1:2 with points pt s(i) ps 1.6 lc rgb c(i) title columnheader(1), \
     data index series using 1:2:3 with labels left offset 0.8, 0.6 font ",10" notitle
