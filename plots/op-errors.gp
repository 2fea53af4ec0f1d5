# kind  error of the total time %  least and largest of a run  share of the time %
load folder."/style.gp"
set title "Error of the prediction by op kind: total time, and the range over runs\n".subject
set ylabel "predicted / measured - 1, %"
set xrange [-0.6:rows - 0.4]
set boxwidth 0.6
set xtics rotate by -30 left
set key top right
plot data using 0:2:xtic(sprintf("%s (%.1f%%)", stringcolumn(1), column(5))) with boxes lc rgb "#56B4E9" fs pattern 3 border lc rgb "black" title "total (in brackets: share of the time)", \
     data using 0:2:3:4 with yerrorbars pt 0 lw 1.4 lc rgb "#444444" title "least and largest of a run", \
     5 with lines lw 1 dt 3 lc rgb "#666666" title "5 %", -5 with lines lw 1 dt 3 lc rgb "#666666" notitle
