# blocks by layout: sequence length  MFU %
load folder."/style.gp"
set title "MFU against sequence length\n".subject
set xlabel "tokens per sequence\n "
set ylabel "MFU, % of the datasheet dense peak"
set logscale x 2
eval ticks_of_tokens
set yrange [0:*]
set key bmargin center horizontal
plot for [i = 0:series - 1] data index i using 1:2 with linespoints lw 2.5 dt d(i) pt s(i) ps 1.5 lc rgb c(i) \
         title columnheader(1)
