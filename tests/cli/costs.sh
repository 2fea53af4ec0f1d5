# The shipped cost table: what its raw rows make, and said to be part measured, part seeded.
if command -v python3 >"$out"; then
    python3 tests/tools/raw_to_table.py kernels/measured/raw/h200-2026-11-22.txt \
        kernels/measured/raw/h200x2-2026-11-22.txt tests/data/seeds/h200.txt \
        kernels/measured/raw/h200-tiles-2026-11-22.txt >"$work/h200.txt"
    same "$work/h200.txt" kernels/measured/h200.txt "h200.txt is what tests/tools/raw_to_table.py makes"
fi
expect 0 list costs --machine h200x1 && prints "of them seeded"
expect 0 list costs --machine h200x1 --costs tests/data/seeds && prints ", seeded"
