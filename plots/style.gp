# What all figures share. Colours: Okabe and Ito, "Color Universal Design" (2008), safe for colour-blind readers; the GEMM
# blue is lightened so that it differs from attention's orange in a grey print too. Solid: something runs. Hatched:
# something waits. Series also differ in dash and point.
set datafile separator "\t"
set datafile missing ""
set border 3 lw 1 lc rgb "#444444"
set tics nomirror out scale 0.6
set grid ytics lc rgb "#dddddd" lt 1 lw 1
set key Left reverse
set style fill solid 1 border lc rgb "black"
array colour[8] = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000", "#999999"]
array dash[8] = [1, 2, 4, 3, 5, 1, 2, 4]
array point[8] = [7, 5, 9, 13, 11, 6, 4, 8]
c(i) = colour[(int(i) % 8) + 1]
d(i) = dash[(int(i) % 8) + 1]
s(i) = point[(int(i) % 8) + 1]
# bars of several kinds beside each other: dark and light in turn
array shade[8] = ["#0072B2", "#E69F00", "#9ad6c4", "#D55E00", "#A6D8F5", "#444444", "#F0E442", "#CC79A7"]
b(i) = shade[(int(i) % 8) + 1]
# classes of ops: attention, GEMM, expert GEMM, memory-bound, collective, copy between GPUs
array tone[6] = ["#E69F00", "#A6D8F5", "#0072B2", "#e2e2e2", "#D55E00", "#009E73"]
# tokens are counted in powers of two; a hair below, as a tick at the very end of a logarithmic axis would be left out
ticks_of_tokens = "set xtics ("
do for [k = 5:24] {
    n = 2 ** k
    ticks_of_tokens = ticks_of_tokens.sprintf("%s'%d%s' %.4f", k > 5 ? ", " : "", n >= 1024 * 1024 ? n / 1024 / 1024 : n >= 1024 ? n / 1024 : n, \
                                              n >= 1024 * 1024 ? "M" : n >= 1024 ? "K" : "", n * (1 - 1e-8))
}
ticks_of_tokens = ticks_of_tokens.")"
