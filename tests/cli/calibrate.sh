# calibrate without a GPU: what would be measured, and tables made of journals.
table=$work/table.txt
expect 0 calibrate --dry-run && prints "to do in"
expect 0 calibrate --dry-run --quick --rows && prints "gemm_qkv precision=bf16 m=4096 n=9216 k=4096 regime=burst"
expect 0 calibrate --dry-run --device 0,1 && prints "interference"
expect 0 calibrate --dry-run --rows --device 0,1,2,3 && prints "pull bytes=1073741824 ways=2 ranks=4 by=owner" && prints "allreduce bytes=2048 ranks=4" && prints "ranks=4 streams=3 order=round" && prints "alltoall bytes=24576"
expect 0 calibrate --dry-run --anchors && prints "sustained"
expect 2 calibrate --quick --anchors && says "--anchors"
expect 2 calibrate --rows && says "--rows"
expect 2 calibrate some.raw && says "some.raw"
expect 2 calibrate --dry-run --device 0,0 && says "--device"
expect 2 calibrate --dry-run --device 0,1,2,1 && says "GPU 1 is named twice"
expect 2 calibrate --dry-run --device 0,1, && says "--device"
expect 2 calibrate --dry-run --device x && says "--device"
expect 0 calibrate --dry-run --spread --device 0,1,2,3 && prints "sustained"
expect 0 calibrate --dry-run --only release --rows && prints "gap_ms=160 fill=memory"
expect 0 calibrate --dry-run --shard 1/4 && prints "to do in"
expect 2 calibrate --dry-run --shard 4/4 && says "--shard"
expect 2 calibrate --dry-run --shard 1 && says "--shard"
expect 2 calibrate --dry-run --only hold,nonsense && says "nonsense"
expect 2 calibrate --dry-run --hold 0 && says "--hold"
expect 2 calibrate --dry-run --limit 0 && says "--limit"
expect 2 calibrate --dry-run --machine no-such-machine && says "no-such-machine"
expect 2 calibrate --merge && says "--out"
expect 2 calibrate --merge --quick --out "$table" kernels/measured/gb200.txt && says "--quick"
# a table is a journal too; what is made of it is read as it was
expect 0 calibrate --merge --out "$table" kernels/measured/h200.txt
expect 0 calibrate --merge --out "$table.2" "$table"
rows() { grep -vc '^#\|^$' "$1"; }
if [ "$(rows "$table")" = "$(rows kernels/measured/h200.txt)" ]; then pass; else fail "merging keeps every row"; fi
grep -v '^# source' "$table" >"$work/once"
grep -v '^# source' "$table.2" >"$work/twice"
same "$work/once" "$work/twice" "merging twice"
expect 2 calibrate --merge --out "$table" kernels/measured/h200.txt kernels/measured/gb200.txt && says "gb200"
echo "nonsense" >"$work/bad.raw"
expect 2 calibrate --merge --out "$table" "$work/bad.raw" && says "bad.raw:1"
# what a journal holds isn't measured again
cp kernels/measured/h200.txt "$work/mine.raw"
expect 0 calibrate --dry-run --rows --resume --out "$work/mine" && prints "done gemm"
