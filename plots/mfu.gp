# blocks by layout: sequence length  MFU %
load folder."/style.gp"
set title "MFU against sequence length\n".subject
set xlabel "tokens per sequence"
set ylabel "MFU, % of the datasheet dense peak"
set logscale x 2
set format x "%.0f"
set yrange [0:*]
set key outside right center
plot for [i = 0:series - 1] data index i using 1:2 with linespoints lw 2 dt d(i) pt s(i) ps 1.3 lc rgb c(i) \
         title columnheader(1)
