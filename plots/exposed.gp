# blocks by machine, what-if and P: tokens per GPU and forward  exposed %
load folder."/style.gp"
set title "Exposed transfer against tokens per forward\n".subject
set xlabel "new tokens per GPU and forward\n "
set ylabel "exposed transfer and wait, % of the forward"
set logscale x 2
eval ticks_of_tokens
set yrange [-2:*]
set key bmargin left maxrows 3
plot for [i = 0:series - 1] data index i using 1:2 with linespoints lw 2.5 dt d(i) pt s(i) ps 1.5 lc rgb c(i) \
         title columnheader(1), \
     for [k = 1:knees] "+" every ::0::0 using (value(sprintf("kx%d", k))):(value(sprintf("ky%d", k))) with points pt 6 \
         ps 3.2 lw 2 lc rgb "black" title (k == 1 ? "below 1 % from here on" : "")
