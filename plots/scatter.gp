# blocks by strategy: measured ms  predicted ms  low  high
load folder."/style.gp"
set title "Forward time, predicted against measured\n".subject
set xlabel "measured, ms a forward"
set ylabel "predicted, ms a forward (bar: interval)"
set format xy "%g"
if (high / low > 15) { set logscale xy } else { low = 0 }
set xrange [low:high]
set yrange [low:high]
set size square
set grid xtics lc rgb "#eeeeee" lt 1
set key outside right center
set samples 200
plot x * 1.05 with lines lw 1 dt 3 lc rgb "#666666" title "5 % band", x / 1.05 with lines lw 1 dt 3 lc rgb "#666666" notitle, \
     x with lines lw 1 lc rgb "#222222" notitle, \
     for [i = 0:series - 1] data index i using 1:2:3:4 with yerrorbars pt s(i) ps 1.3 lw 1.2 lc rgb c(i) title columnheader(1)
