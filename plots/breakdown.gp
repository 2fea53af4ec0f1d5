# layout  compute  exposed  wait  bubble  idle  hidden, seconds per million tokens
load folder."/style.gp"
set title "Where the time goes, on the rank that ends last\n".subject
set ylabel "seconds per million tokens"
set yrange [0:*]
set xrange [-0.6:rows - 0.3]
set boxwidth 0.56
set xtics rotate by -30 left
set key bmargin center horizontal maxrows 2
array label[5] = ["compute", "exposed communication", "wait for other ranks", "pipeline bubble", "idle"]
array is[5] = ["#A6D8F5", "#D55E00", "#444444", "#8a3f70", "#ffffff"]
# what stands still is hatched
array fill[5] = [3, 3, 4, 5, 0]
sum(k) = ((k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + \
          (k >= 5 ? column(5) : 0) + (k >= 6 ? column(6) : 0))
# hidden communication is no part of the sum: a narrow bar beside it
hidden(h, all) = h > 0.005 * all ? h : NaN
plot for [k = 6:2:-1] data using 0:(sum(k)):xtic(1) with boxes lc rgb is[k - 1] fs pattern fill[k - 1] \
         border lc rgb "black" notitle, \
     data using ($0 + 0.36):(hidden($7, $2)):(0.13) with boxes lc rgb "#009E73" fs solid 1 border lc rgb "black" notitle, \
     for [k = 1:5] keyentry with boxes lc rgb is[k] fs pattern fill[k] border lc rgb "black" title label[k], \
     keyentry with boxes lc rgb "#009E73" fs solid 1 border lc rgb "black" title "hidden communication, beside compute"
