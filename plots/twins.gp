# row  from us  to us  class  label  layer
load folder."/style.gp"
set title sprintf("Layers %d and %d, live above simulated\n%s", layer, layer + 1, subject)
load folder."/lanes.gp"
