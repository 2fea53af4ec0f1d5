# row  from us  to us  class  label  layer
load folder."/style.gp"
set title sprintf("Lanes over layers %d and %d\n%s", layer, layer + 1, subject)
load folder."/lanes.gp"
