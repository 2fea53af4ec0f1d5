# blocks by strategy: measured ms  predicted ms  low  high
load folder."/style.gp"
wide = high / low > 15
stops = "(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)"
if (wide) { set logscale x; eval "set xtics ".stops } else { low = 0 }
set xrange [low:high]
set format xy "%g"
set xlabel "measured, ms per forward"
set grid xtics lc rgb "#eeeeee" lt 1
set samples 200
set multiplot title "Forward time, predicted against measured\n".subject
# times: on this scale a few per cent are the width of a line
set lmargin at screen 0.09
set rmargin at screen 0.47
set tmargin at screen 0.84
set bmargin at screen 0.16
set ylabel "predicted, ms per forward (bar: interval)"
set yrange [low:high]
if (wide) { set logscale y; eval "set ytics ".stops }
# below the diagonal there are no points
set key inside bottom right
plot x * 1.05 with lines lw 1.4 dt 3 lc rgb "#444444" title "5 % band", x / 1.05 with lines lw 1.4 dt 3 lc rgb "#444444" notitle, \
     x with lines lw 1 lc rgb "#222222" notitle, \
     for [i = 0:series - 1] data index i using 1:2:3:4 with yerrorbars pt s(i) ps 1.3 lw 1.4 lc rgb c(i) title columnheader(1)
# and what they are off by
set lmargin at screen 0.59
set rmargin at screen 0.97
unset logscale y
set ytics autofreq
set ylabel "predicted / measured - 1, % (bar: interval)"
set yrange [*<-8:8<*]
unset key
plot 5 with lines lw 1.4 dt 3 lc rgb "#444444", -5 with lines lw 1.4 dt 3 lc rgb "#444444", 0 with lines lw 1 lc rgb "#222222", \
     for [i = 0:series - 1] data index i using 1:(100 * ($2 / $1 - 1)):(100 * ($3 / $1 - 1)):(100 * ($4 / $1 - 1)) \
         with yerrorbars pt s(i) ps 1.3 lw 1.4 lc rgb c(i)
unset multiplot
