# blocks by strategy: measured ms  predicted ms  low  high
load folder."/style.gp"
set title "Forward time, predicted against measured\n".subject
set xlabel "measured, ms per forward"
set ylabel "predicted, ms per forward (bar: interval)"
set format xy "%g"
if (high / low > 15) {
    set logscale xy
    set xtics (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    set ytics (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
} else { low = 0 }
set xrange [low:high]
set yrange [low:high]
set size square
set grid xtics lc rgb "#eeeeee" lt 1
# below the diagonal there are no points
set key inside bottom right
set samples 200
plot x * 1.05 with lines lw 1.4 dt 3 lc rgb "#444444" title "5 % band", x / 1.05 with lines lw 1.4 dt 3 lc rgb "#444444" notitle, \
     x with lines lw 1 lc rgb "#222222" notitle, \
     for [i = 0:series - 1] data index i using 1:2:3:4 with yerrorbars pt s(i) ps 1.5 lw 1.4 lc rgb c(i) title columnheader(1)
