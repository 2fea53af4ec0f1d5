# blocks by run: TTFT s  share of requests
load folder."/style.gp"
set title "Time to first token, cumulative"
set xlabel "TTFT, s"
set ylabel "share of requests"
set logscale x 2
set format x "%g"
set yrange [0:1.02]
set grid xtics lc rgb "#eeeeee" lt 1
set key bottom right box lc rgb "#cccccc" opaque
plot for [i = 0:series - 1] data index i using 1:2 with lines lw 2.5 dt d(i) lc rgb c(i) title columnheader(1)
