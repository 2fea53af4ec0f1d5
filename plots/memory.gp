# layout  attention and embedding  experts  gather buffers  KV  activations  workspace, GB
load folder."/style.gp"
set title "Memory per GPU by layout\n".subject
set ylabel "GB per GPU"
set yrange [0:(most > 1.15 * hbm ? most * 1.05 : 1.2 * hbm)]
set xrange [-0.6:rows - 0.4]
set boxwidth 0.7
set xtics rotate by -30 left
set key bmargin center horizontal maxrows 2
array label[6] = ["attention, embedding, head", "experts", "gather buffers, first layer", "KV", "activations", "workspace"]
array is[6] = ["#A6D8F5", "#0072B2", "#F0E442", "#009E73", "#e8b8d2", "#ffffff"]
sum(k) = (k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + (k >= 5 ? column(5) : 0) + \
         (k >= 6 ? column(6) : 0) + (k >= 7 ? column(7) : 0)
set label 1 sprintf("HBM %.0f GB", hbm) at graph 0.01, first hbm offset 0, 0.7
plot for [k = 7:2:-1] data using 0:(sum(k)):xtic(1) with boxes lc rgb is[k - 1] notitle, \
     for [k = 1:6] keyentry with boxes lc rgb is[k] fs solid 1 border lc rgb "black" title label[k], \
     hbm with lines lw 2.5 dt 2 lc rgb "#D55E00" notitle
