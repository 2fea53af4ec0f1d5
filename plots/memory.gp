# layout  attention and embedding  experts  gather buffers  KV  activations  workspace, GB
load folder."/style.gp"
set title "Memory per GPU by layout\n".subject
set ylabel "GB"
set yrange [0:(most > 1.15 * hbm ? most * 1.05 : 1.2 * hbm)]
set xrange [-0.6:rows - 0.4]
set boxwidth 0.7
set xtics rotate by -30 left
set key outside right center reverse Left
array label[6] = ["attention, embedding, head", "experts", "gather buffers, first layer", "KV", "activations", "workspace"]
array tone[6] = ["#56B4E9", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999"]
array fill[6] = [3, 4, 7, 1, 5, 0]
sum(k) = (k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + (k >= 5 ? column(5) : 0) + \
         (k >= 6 ? column(6) : 0) + (k >= 7 ? column(7) : 0)
set label 1 sprintf("HBM %.0f GB", hbm) at graph 0.01, first hbm offset 0, 0.6
plot for [k = 7:2:-1] data using 0:(sum(k)):xtic(1) with boxes lc rgb tone[k - 1] fs pattern fill[k - 1] \
         border lc rgb "black" title label[k - 1], \
     hbm with lines lw 2.5 dt 2 lc rgb "#D55E00" notitle
