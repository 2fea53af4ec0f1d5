# kind  error of the total time %  least and largest of a run  share of the time %
load folder."/style.gp"
set title "Error of the prediction by op kind: total time, and the range over runs\n".subject
set ylabel "predicted / measured - 1, %"
set xrange [-0.6:rows - 0.4]
set boxwidth 0.6
set xtics rotate by -30 left
set key bmargin center horizontal maxrows 1
plot data using 0:(abs($2) <= 5 ? $2 : NaN):xtic(sprintf("%s (%.1f %%)", stringcolumn(1), column(5))) with boxes lc rgb "#A6D8F5" notitle, \
     data using 0:(abs($2) > 5 ? $2 : NaN) with boxes lc rgb "#E69F00" notitle, \
     data using 0:3:(0):($4 - $3) with vectors heads size graph 0.005, 90 lw 1.6 lc rgb "#444444" notitle, \
     5 with lines lw 1.4 dt 3 lc rgb "#444444" notitle, -5 with lines lw 1.4 dt 3 lc rgb "#444444" notitle, \
     0 with lines lw 1 lc rgb "#444444" notitle, \
     keyentry with boxes lc rgb "#A6D8F5" fs solid 1 border lc rgb "black" title "total, within 5 %", \
     keyentry with boxes lc rgb "#E69F00" fs solid 1 border lc rgb "black" title "beyond", \
     keyentry with lines lw 1.6 lc rgb "#444444" title "least to largest of a run", \
     keyentry with dots lc rgb "white" title "(in brackets: share of the time)"
