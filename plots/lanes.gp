# Boxes on lanes, for gantt and twins: row  from us  to us  class  label  layer
unset grid
# classes that occur have a place in the key
present = 0
stats data using (present = present | (1 << int($4)), $4) nooutput
has(k) = (present >> k) & 1
set xlabel "ms\n "
set xrange [0:window / 1000]
set yrange [rows - 0.4:-0.6]
set key bmargin center horizontal
array label[8] = ["attention", "GEMM", "expert GEMM", "memory-bound", "collective", "copy", "host", "waits for a rank"]
h = 0.36
ms(us) = us / 1000.0
is(k) = k <= 6 ? tone[k] : "#ffffff"
plot for [i = 0:6] data using (int($4) == i ? ms($2) : NaN):1:(ms($2)):(ms($3)):($1 - h):($1 + h) with boxxyerror \
         lc rgb is(i + 1) fs solid 1 border lc rgb "#333333" notitle, \
     data using (int($4) == 7 ? ms($2) : NaN):1:(ms($2)):(ms($3)):($1 - h):($1 + h) with boxxyerror lc rgb "#555555" \
         fs pattern 4 border lc rgb "#555555" notitle, \
     for [i = 0:6] NaN with boxes lc rgb is(i + 1) fs solid 1 border lc rgb "#333333" title (has(i) ? label[i + 1] : ""), \
     NaN with boxes lc rgb "#555555" fs pattern 4 border lc rgb "#555555" title (has(7) ? label[8] : ""), \
     data using (ms($2 + $3) / 2):1:(int($4) == 2 ? stringcolumn(5) : "") with labels font ",11" tc rgb "white" notitle, \
     data using (ms($2 + $3) / 2):1:(int($4) == 2 ? "" : stringcolumn(5)) with labels font ",11" notitle
