# gnuplot -e "data='OUT/throughput.dat'" experiments/large/throughput.gp >experiments/large/throughput.png
# name, measured, predicted, low, high: thousand tokens/s a GPU x layers (compare.py)
set terminal pngcairo size 1500,720 font "DejaVu Sans,11"
set title "Four H200s, Qwen3-235B shape, sustained: measured (bars), predicted before the run with its interval (points)"
set ylabel "thousand tokens/s a GPU x layers"
set yrange [0:*]
set xtics rotate by -40 left nomirror
set grid ytics lc rgb "#dddddd"
set boxwidth 0.7
set rmargin 12
set key top right
plot data using 0:2:xtic(1) with boxes lc rgb "#56B4E9" fs solid 0.7 border lc rgb "black" title "measured", \
     data using 0:3:4:5 with yerrorbars pt 7 ps 0.9 lw 1.5 lc rgb "#D55E00" title "predicted"
