# blocks by run: TTFT s  share of requests
load folder."/style.gp"
set title "Time to first token, cumulative\n".subject
set xlabel "TTFT, s\n "
set ylabel "share of requests"
set logscale x
set format x "%g"
set yrange [0:1.02]
set grid xtics lc rgb "#eeeeee" lt 1
set key bmargin center horizontal
plot for [i = 0:series - 1] data index i using 1:2 with lines lw 2.5 dt d(i) lc rgb c(i) title columnheader(1)
