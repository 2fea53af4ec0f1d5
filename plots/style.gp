# What all figures share. Colours: Okabe and Ito, "Color Universal Design" (2008), safe for colour-blind readers. Fill
# patterns, dashes and point shapes carry the same meaning, so that a grey print can be read too.
set datafile separator "\t"
set datafile missing ""
set border 3 lw 1 lc rgb "#444444"
set tics nomirror out scale 0.6
set grid ytics lc rgb "#dddddd" lt 1 lw 1
set key Left reverse
set style fill solid 1 border lc rgb "black"
array colour[8] = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999"]
# gnuplot's cairo fill patterns, ordered so that neighbours differ in density
array pattern[8] = [3, 2, 4, 1, 7, 6, 5, 0]
array dash[8] = [1, 2, 4, 3, 5, 1, 2, 4]
array point[8] = [7, 5, 9, 13, 11, 6, 4, 8]
c(i) = colour[(int(i) % 8) + 1]
p(i) = pattern[(int(i) % 8) + 1]
d(i) = dash[(int(i) % 8) + 1]
s(i) = point[(int(i) % 8) + 1]
