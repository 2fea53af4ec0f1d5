# layer, then us by resource; the last row lies outside layers
load folder."/style.gp"
set title "Critical path by layer and resource\n".subject
set xlabel "layer"
set ylabel "ms per forward"
set yrange [0:*]
set xrange [-0.7:layers + 1.7]
set boxwidth 1
set key outside right center
step = layers > 40 ? 10 : layers > 12 ? 5 : 1
set xtics 0, step, layers - (layers > 12 ? step / 2 : 1)
set xtics add ("outside" layers + 1)
array tone[9] = ["#E69F00", "#56B4E9", "#0072B2", "#dddddd", "#D55E00", "#009E73", "#CC79A7", "#444444", "#ffffff"]
array fill[9] = [1, 3, 4, 3, 7, 5, 6, 3, 0]
sum(k) = (k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + (k >= 5 ? column(5) : 0) + \
         (k >= 6 ? column(6) : 0) + (k >= 7 ? column(7) : 0) + (k >= 8 ? column(8) : 0) + (k >= 9 ? column(9) : 0) + \
         (k >= 10 ? column(10) : 0)
plot for [k = 10:2:-1] data using ($1 < layers ? $1 : layers + 1):(sum(k) / 1000) with boxes lc rgb tone[k - 1] \
         lw 0.4 fs pattern fill[k - 1] border lc rgb "#333333" \
         title (strstrt(word(names, k - 1), "(0.0%)") ? "" : word(names, k - 1))
