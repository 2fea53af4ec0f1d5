# x  speed-up  index of the what-if
load folder."/style.gp"
set title "What a faster resource buys\n".subject
set ylabel "throughput, machine as it is = 1"
set yrange [0:*]
set xrange [0.2:last + 0.8]
set boxwidth 0.86
set xtics
set key bmargin center horizontal
plot for [i = 1:words(kinds)] data using 1:(int($3) == i - 1 ? $2 : NaN) with boxes lc rgb b(i - 1) title word(kinds, i), \
     data using 1:2:(sprintf("%.2f", $2)) with labels offset 0, 0.6 font ",13" notitle, \
     1 with lines lw 1.5 dt 2 lc rgb "black" notitle
