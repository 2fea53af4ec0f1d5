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
# peer copies as copies; host copies, the host and idle time besides
array is[9] = [tone[1], tone[2], tone[3], tone[4], tone[5], tone[6], "#CC79A7", "#444444", "#ffffff"]
sum(k) = (k >= 2 ? column(2) : 0) + (k >= 3 ? column(3) : 0) + (k >= 4 ? column(4) : 0) + (k >= 5 ? column(5) : 0) + \
         (k >= 6 ? column(6) : 0) + (k >= 7 ? column(7) : 0) + (k >= 8 ? column(8) : 0) + (k >= 9 ? column(9) : 0) + \
         (k >= 10 ? column(10) : 0)
edge = layers > 40 ? 0.2 : 1
label(k) = sprintf("%s %.1f %%", word(names, k), real(word(shares, k)))
plot for [k = 10:2:-1] data using ($1 < layers ? $1 : layers + 1):(sum(k) / 1000) with boxes lc rgb is[k - 1] \
         lw edge fs solid 1 border lc rgb "#333333" \
         title (real(word(shares, k - 1)) < 0.05 ? "" : label(k - 1))
