# layout  compute  exposed  wait  bubble  idle  hidden, seconds per million tokens
load folder."/style.gp"
set title "Where the time goes, on the rank that ends last\n".subject
set ylabel "seconds per million tokens"
set yrange [0:*]
set xrange [-0.6:rows - 0.4]
set boxwidth 0.62
set xtics rotate by -30 left
set key outside top center horizontal
array label[5] = ["compute", "exposed communication", "wait for other ranks", "pipeline bubble", "idle"]
array fill[5] = [3, 7, 4, 1, 0]
array tone[5] = ["#56B4E9", "#D55E00", "#F0E442", "#CC79A7", "#ffffff"]
sum(k) = ((k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + \
          (k >= 5 ? column(5) : 0) + (k >= 6 ? column(6) : 0))
# hidden communication is no part of the sum: a stem beside the bar
hidden(h, all) = h > 0.005 * all ? h : NaN
plot for [k = 6:2:-1] data using 0:(sum(k)):xtic(1) with boxes lc rgb tone[k - 1] fs pattern fill[k - 1] \
         border lc rgb "black" title label[k - 1], \
     data using ($0 + 0.38):(hidden($7, $2)) with points pt 9 ps 1.3 lc rgb "#009E73" \
         title "hidden communication (behind compute)", \
     data using ($0 + 0.38):(hidden($7, $2)):(0):(-$7) with vectors nohead lw 1.5 dt 3 lc rgb "#009E73" notitle
