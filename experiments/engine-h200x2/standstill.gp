# gnuplot -e 'folder="plots"; dir="experiments/engine-h200x2"' experiments/engine-h200x2/standstill.gp
set terminal pngcairo size 1280,600 font "Sans,14"
set output dir."/standstill.png"
data = dir."/standstill.tsv"
window = 180000
rows = 4
load folder."/style.gp"
set title "From one forward to the next: Mixtral-8x7B, experts a layer ahead, 32K tokens, one H200\nabove: token ids by a copy engine; below: by SMs"
set ytics ("compute" 0, "host copies" 1, "compute" 2, "host copies" 3)
set arrow from 60,-0.5 to 60,3.5 nohead dt 2 lc rgb "#555555"
load folder."/lanes.gp"
