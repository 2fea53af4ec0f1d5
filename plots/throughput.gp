# x  tokens/s per GPU  index of the degree  least  most
load folder."/style.gp"
set title "Throughput by strategy and degree (best variant of each)\n".subject
set ylabel "tokens/s per GPU"
set yrange [0:*]
set offsets 0, 0, graph 0.06, 0
set xrange [0.2:last + 0.8]
set boxwidth 0.86
set format y "%.0f"
set key bmargin center horizontal
plot for [i = 1:words(degrees)] data using 1:(int($3) == i - 1 ? $2 : NaN) with boxes lc rgb b(i - 1) \
         title "degree ".word(degrees, i), \
     data using 1:2:4:5 with yerrorbars pt 7 ps 0.6 lw 1.6 lc rgb "#222222" title "interval of the prediction", \
     data using 1:5:(sprintf("%.0f", $2)) with labels offset 0, 0.6 font ",12" notitle
