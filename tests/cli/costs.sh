# The shipped cost tables: what their journals make, and said to be part measured, part seeded.
raw=kernels/measured/raw
expect 0 calibrate --merge --out "$work/h200.txt" $raw/h200x1-2026-11-22.raw \
    $raw/h200-before-2026-11-22.txt $raw/h200x1-more-2026-11-22.raw \
    $raw/h200x1-fp8-2026-11-22.raw $raw/h200x2-calibrate-2026-11-22.raw \
    $raw/h200x1-limits-2026-11-22.raw $raw/h200x2-duty-2026-11-22.raw \
    $raw/h200x4-collectives-2026-11-22.raw $raw/h200x4-2026-11-22.raw \
    $raw/h200x1-last-2026-11-22.raw $raw/h200-gap-2026-11-22.txt \
    $raw/h200x1-holds-2026-11-22.raw $raw/h200x2-loaded-2026-11-22.raw $raw/h200x4-pushes-2026-11-22.raw \
    $raw/h200x1-grid-2026-11-22.raw \
    $raw/h200x2-links-2026-11-22.raw $raw/h200x1-rows-2026-11-22.raw $raw/h200x2-resident-2026-11-22.raw \
    $raw/h200x2-resident-b-2026-11-22.raw $raw/h200x2-resident-c-2026-11-22.raw \
    $raw/h200x1-words-2026-11-22.raw $raw/h200x2-host-2026-11-22.raw \
    $raw/h200x1-384-2026-11-22.raw $raw/h200x1-between-2026-11-22.raw
same "$work/h200.txt" kernels/measured/h200.txt "h200.txt is what its journals make"
expect 0 calibrate --merge --out "$work/h100.txt" $raw/h100x1-2026-11-22.raw \
    $raw/h100-before-2026-11-22.txt $raw/h100x1-rows-2026-11-22.raw $raw/h100x1-holds-2026-11-22.raw
same "$work/h100.txt" kernels/measured/h100.txt "h100.txt is what its journals make"
expect 0 calibrate --merge --anchors --out "$work/cards.txt" $raw/h200-cards-2026-11-22.txt \
    $raw/h200x4-anchors-2026-11-22.raw $raw/h200x2-anchors-2026-11-22.raw $raw/h200x1-anchors-2-2026-11-22.raw $raw/h200x1-anchors-3-2026-11-22.raw \
    $raw/h200x2-anchors-3-2026-11-22.raw $raw/h200x2-anchors-4-2026-11-22.raw
same "$work/cards.txt" kernels/measured/h200_cards.txt "h200_cards.txt is what its journals make, card by card"
expect 0 calibrate --merge --anchors --out "$work/cards.txt" $raw/h100x1-cards-2026-11-22.raw
same "$work/cards.txt" kernels/measured/h100_cards.txt "h100_cards.txt too"
expect 0 list costs --machine h200x1 && prints "of them seeded"
expect 0 list costs --machine h200x1 --costs tests/data/seeds && prints ", seeded"
