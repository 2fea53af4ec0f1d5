# row  from us  to us  class  label  layer
load folder."/style.gp"
unset grid
set title sprintf("Layers %d and %d, live above simulated\n%s", layer, layer + 1, subject)
set xlabel "µs"
set xrange [0:window]
set yrange [rows - 0.4:-0.6]
set key outside top center horizontal
array label[8] = ["attention", "GEMM", "expert GEMM", "memory-bound", "collective", "copy", "host", "waits for a rank"]
array tone[8] = ["#E69F00", "#56B4E9", "#0072B2", "#dddddd", "#D55E00", "#009E73", "#ffffff", "#F0E442"]
h = 0.36
# a wait is hatched: nothing runs
plot for [i = 0:6] data using (int($4) == i ? $2 : NaN):1:2:3:($1 - h):($1 + h) with boxxyerror lc rgb tone[i + 1] \
         fs solid 0.7 border lc rgb "#333333" notitle, \
     data using (int($4) == 7 ? $2 : NaN):1:2:3:($1 - h):($1 + h) with boxxyerror lc rgb "#777777" \
         fs pattern 4 border lc rgb "#777777" notitle, \
     for [i = 0:6] NaN with boxes lc rgb tone[i + 1] fs solid 0.7 border lc rgb "#333333" title label[i + 1], \
     NaN with boxes lc rgb "#777777" fs pattern 4 border lc rgb "#777777" title label[8], \
     data using (($2 + $3) / 2):1:5 with labels font ",9" notitle
