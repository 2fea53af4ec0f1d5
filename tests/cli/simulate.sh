# simulate: keys of the contract, sums to the ns, determinism, what does not fit, files.
for s in dp tp ep pp asyncep dwdp offload asap; do
    expect 0 simulate $small --strategy $s --json || continue
    cp "$out" "$work/$s.json"
    json "json_valid(j)" 1
    json "(SELECT group_concat(k,' ') FROM (SELECT value AS k FROM json_each('[\"model\",\"machine\",\"strategy\",\"degrees\",\"gpus\",\"precision\",\"tokens\",\"tokens_per_gpu\",\"forward_s\",\"tokens_per_s\",\"tokens_per_s_per_gpu\",\"mfu\",\"compute_s\",\"exposed_comm_s\",\"hidden_comm_s\",\"wait_s\",\"bubble_s\",\"idle_s\",\"memory_per_gpu_bytes\",\"fits\",\"ttft_s\",\"interval\",\"cost_provenance\"]') WHERE k NOT IN (SELECT key FROM json_each(j))))" ""
    json "json_extract(j,'\$.strategy')" $s
    json "json_extract(j,'\$.gpus')" 8
    json "json_extract(j,'\$.fits')" 1
    # on the rank that ends last the parts add up to the forward, exactly, in ns
    json "CAST(round(1e9*json_extract(j,'\$.forward_s')) AS INT) = CAST(round(1e9*json_extract(j,'\$.compute_s')) AS INT) + CAST(round(1e9*json_extract(j,'\$.exposed_comm_s')) AS INT) + CAST(round(1e9*json_extract(j,'\$.wait_s')) AS INT) + CAST(round(1e9*json_extract(j,'\$.bubble_s')) AS INT) + CAST(round(1e9*json_extract(j,'\$.idle_s')) AS INT)" 1
    json "json_extract(j,'\$.forward_s') > 0 AND json_extract(j,'\$.compute_s') > 0" 1
    json "json_extract(j,'\$.tokens') = 2*8*2048" 1
    json "abs(json_extract(j,'\$.tokens_per_s')*json_extract(j,'\$.elapsed_s')/json_extract(j,'\$.tokens')-1) < 1e-9" 1
    json "json_extract(j,'\$.interval.forward_low_s') <= json_extract(j,'\$.forward_s') AND json_extract(j,'\$.forward_s') <= json_extract(j,'\$.interval.forward_high_s')" 1
    json "(SELECT abs(sum(value)-1) < 1e-9 FROM json_each(json_extract(j,'\$.cost_provenance')))" 1
    json "(SELECT sum(value) FROM json_each(json_extract(j,'\$.memory')) WHERE key NOT IN ('total','host_pinned')) = json_extract(j,'\$.memory_per_gpu_bytes')" 1
    # the same command gives the same bytes
    "$forerun" simulate $small --strategy $s --json >"$work/again.json" 2>/dev/null
    same "$work/$s.json" "$work/again.json" "determinism of $s"
    expect 0 simulate $small --strategy $s && prints "MFU" && prints "datasheet dense" && prints "critical path"
done
# dp moves nothing; the seed matters where routing is drawn
expect 0 simulate $small --strategy dp --json
json "json_extract(j,'\$.exposed_comm_s') + json_extract(j,'\$.hidden_comm_s')" 0.0
expect 0 simulate $small --strategy ep --seed 2 --json
cmp -s "$out" "$work/ep.json" && fail "another seed changes nothing" || pass
# traffic: tp moves two all-reduces of tokens x hidden a layer (8 layers, 16384 tokens of the group, bf16), asyncep 7/8 of
# the experts of all layers but the first; folding changes neither
expect 0 simulate $small --strategy tp --json
json "json_extract(j,'\$.traffic.sent_bytes')" $((8 * 2 * 2 * 7 * (8 * 2048 * 2048 * 2 / 8)))
for fold in "" --no-fold; do
    expect 0 simulate $small --strategy asyncep --skew even $fold --json
    json "json_extract(j,'\$.traffic.received_bytes')" $((7 * 112 * 3 * 2048 * 768 * 2))
    json "json_extract(j,'\$.traffic.sent_bytes')" $((7 * 112 * 3 * 2048 * 768 * 2))
done
# folding identical ranks changes no byte of a result but the count of ops that were played and folded
for options in "--strategy dp" "--strategy tp" "--strategy ep" "--strategy ep --overlap tbo" "--strategy asyncep" "--strategy asyncep --gather-streams 1 --tokens 12K" \
    "--strategy asyncep --gather nccl" "--strategy dwdp --gather-chunk 4M" "--strategy offload" "--strategy offload --ep 1" \
    "--attention tp --tp 4 --dp 2 --experts ep --ep 8"; do
    for fold in "" --no-fold; do
        expect 0 simulate $small --skew even $options $fold --json
        sqlite3 :memory: "SELECT json_remove(CAST(readfile('$out') AS TEXT), '\$.ops', '\$.experiment.no-fold')" >"$work/fold$fold.json"
    done
    same "$work/fold.json" "$work/fold--no-fold.json" "folding of $options"
done
# a stage that waits for the one before it computes meanwhile as fast as that one: its receive takes no SM until then
expect 0 simulate --model qwen3-235b-a22b --machine h200x2 --layers 4 --strategy pp --micro-batches 2 --tokens 8K --seq 4K --forwards 4 --regime burst --csv "$work/pp.csv" --json
if awk -F, '$6 == "gemm_o" { ns[$3] += $11 - $10 } END { exit !(ns[1] > 0 && ns[1] < 1.05 * ns[0]) }' "$work/pp.csv"; then pass; else fail "pp: the second stage's products take longer than the first's"; fi
# what-ifs act, and print both
expect 0 simulate $small --strategy ep --what-if nvlink=2x --json
json "json_extract(j,'\$.what_if')" "nvlink=2x"
json "json_extract(j,'\$.baseline.speedup') > 1" 1
# a load that came from a rest 1.8 s ago is in the second cut of the power limit, one of half a second ago before the first
for warmup in 0.5 1.8; do
    expect 0 simulate --model qwen3-235b-a22b --machine h200x1 --layers 4 --strategy dp --tokens 16K --seq 4K --forwards 3 --warmup $warmup --json
    cp "$out" "$work/warm-$warmup.json"
done
expect 0 simulate --model qwen3-235b-a22b --machine h200x1 --layers 4 --strategy dp --tokens 16K --seq 4K --forwards 3 --json
if awk -v before="$(grep -o '"forward_s": [0-9.]*' "$work/warm-0.5.json" | cut -d' ' -f2)" -v cut="$(grep -o '"forward_s": [0-9.]*' "$work/warm-1.8.json" | cut -d' ' -f2)" \
    -v long="$(grep -o '"forward_s": [0-9.]*' "$out" | cut -d' ' -f2)" 'BEGIN { exit !(before < 0.99 * long && cut > 1.03 * long) }'; then pass; else fail "--warmup: no cut 1.8 s after a rest"; fi
expect 2 simulate $small --strategy dp --warmup x && says --warmup
# the critical path is a partition of the elapsed time
expect 0 simulate $small --strategy ep --why --json
json "abs((SELECT sum(value) FROM json_each(json_extract(j,'\$.critical_path.total_s')))/json_extract(j,'\$.critical_path.elapsed_s')-1) < 1e-9" 1
json "json_array_length(json_extract(j,'\$.critical_path.layers'))" 9

# what does not fit: memory and fits false, timings null, exit 1; --ignore-memory goes on
expect 1 simulate --model qwen3-235b-a22b --machine h200x8 --strategy dp --json && says "does not fit"
json "json_extract(j,'\$.fits')" 0
json "json_type(j,'\$.forward_s')" null
json "json_extract(j,'\$.memory_per_gpu_bytes') > 4e11" 1
expect 1 simulate --model qwen3-235b-a22b --machine h200x8 --strategy dp && prints "does not fit"
expect 0 simulate --model qwen3-235b-a22b --machine h200x8 --strategy dp --ignore-memory --forwards 1 --json
json "json_extract(j,'\$.fits') = 0 AND json_extract(j,'\$.forward_s') > 0" 1

# a trace: every request answered, TTFT in order
expect 0 simulate --model qwen3-30b-a3b --machine h200x8 --layers 4 --strategy asyncep --trace azure-code --requests 50 --rate 100 --json
json "json_extract(j,'\$.requests')" 50
json "json_extract(j,'\$.ttft_s.p50') <= json_extract(j,'\$.ttft_s.p90') AND json_extract(j,'\$.ttft_s.p90') <= json_extract(j,'\$.ttft_s.p99')" 1
expect 2 simulate --strategy tp --model qwen3-30b-a3b --trace /no/such/trace.csv && says /no/such/trace.csv
# rows of a trace that do not go in as they are: said, not passed over
printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,500,1\n2023-11-16 18:17:02.0000000,0,1\n2023-11-16 18:17:02.5000000,700,1\n' >"$work/odd.csv"
expect 0 simulate --model qwen3-30b-a3b --machine h200x8 --layers 4 --strategy asyncep --trace "$work/odd.csv" &&
    prints "left out         1 rows of the trace: 0 tokens" && prints "reordered        1 rows"

# an experiment file is the same experiment as the flags
cat >"$work/cell.json" <<'J'
{"title": "one cell", "base": {"model": "qwen3-30b-a3b", "machine": "h200x8", "layers": 8, "tokens": 2048, "seq": 1024,
 "forwards": 2, "strategy": "ep"}}
J
expect 0 simulate "$work/cell.json" --json && same "$out" "$work/ep.json" "experiment file against flags"
expect 0 simulate "$work/cell.json" --strategy tp --json && same "$out" "$work/tp.json" "a flag over the file"

# store, trace, timeline files
expect 0 simulate $small --strategy ep --db "$work/run.db" --perfetto "$work/run.json" --csv "$work/run.csv"
n=$(sqlite3 "$work/run.db" "SELECT count(*) FROM spans WHERE run=1")
[ "$n" -gt 100 ] && pass || fail "the store holds $n spans"
[ "$(tail -n +2 "$work/run.csv" | wc -l)" = "$n" ] && pass || fail "the CSV holds other spans than the store"
[ "$(sqlite3 :memory: "SELECT json_valid(CAST(readfile('$work/run.json') AS TEXT))")" = 1 ] && pass || fail "--perfetto wrote no JSON"
expect 0 trace "$work/run.db" -o "$work/trace.json"
[ "$(sqlite3 :memory: "SELECT sum(json_extract(value,'\$.ph')='X') FROM json_each(CAST(readfile('$work/trace.json') AS TEXT),'\$.traceEvents')")" = "$n" ] && pass || fail "trace: not one event per span"
expect 2 trace "$work/run.db" && says "-o"
expect 2 trace "$work/run.db" -o "$work/x.json" --run 7 && says 7
expect 2 trace "$work/cell.json" -o "$work/x.json" && says cell.json
expect 2 trace /no/such.db -o "$work/x.json" && says /no/such.db
[ -e "$work/x.json" ] && fail "a refused trace left a file" || pass
# plan
expect 0 plan $small --strategy asyncep --json
json "json_array_length(json_extract(j,'\$.ranks')) = 8 AND json_array_length(json_extract(j,'\$.ops')) > 5" 1
expect 0 plan $small --strategy ep && prints "memory per GPU" && prints alltoall && prints "ops of rank 0"
expect 0 plan $small --strategy ep --all --rank 7 && prints "f0.r7.l7."
expect 2 plan $small --strategy ep --layer 8 && says --layer
expect 1 plan --model qwen3-235b-a22b --strategy dp && prints "does not fit"
# lists of lengths: the same sequences whoever takes them, and idle ranks
lists="--machine h200x2 --model qwen3-30b-a3b --layers 2 --forwards 4 --json"
expect 0 simulate $lists --strategy dp --seqs 1,37,512/2K && prints '"tokens": 10392'
expect 0 simulate $lists --strategy ep --seqs "1,37,512/2K;/9x3" && prints '"tokens": 5250'
expect 0 simulate $lists --strategy asap --seqs 1,37/512 && prints '"tokens": 2200'
expect 0 simulate $lists --strategy dp --seqs 700/ && prints '"idle_ranks": 1'
# a list of cells in one process: each as it would be alone, what is there already left out, one failing among them
mkdir "$work/cells"
printf '%s\n' '# three' '' 'first | --strategy ep' ' bad| --strategy pp --pp 3' 'third|--strategy tp' >"$work/cells.txt"
timeout 60 "$forerun" simulate $small --cells "$work/cells.txt" --results "$work/cells" >"$out" 2>"$errors" && fail "a failed cell was not told" || pass
says "1 of 3 cells failed" && prints "bad                      FAILED: --strategy pp" && prints "2 done, 1 failed, 0 left"
same "$work/cells/first.json" "$work/ep.json" "a cell of a list against the cell alone"
same "$work/cells/third.json" "$work/tp.json" "a later cell of a list against the cell alone"
[ -e "$work/cells/bad.json" ] && fail "a failed cell left a file" || pass
sed -i /bad/d "$work/cells.txt" && rm "$work/cells/third.json"
expect 0 simulate $small --cells "$work/cells.txt" --results "$work/cells" && prints "1 done, 0 failed"
rm "$work/cells/third.json"
echo 'fourth | --tokns 3' >>"$work/cells.txt"
expect 2 simulate $small --cells "$work/cells.txt" --results "$work/cells" && says "line 5" && says "--tokns"
[ -e "$work/cells/third.json" ] && fail "a cell ran though the list has a mistake" || pass
printf 'a/b | --strategy ep\n' >"$work/cells.txt"
expect 2 simulate --cells "$work/cells.txt" --results "$work/cells" && says "expected a name"
printf 'a | --strategy ep --cells x\n' >"$work/cells.txt"
expect 2 simulate --cells "$work/cells.txt" --results "$work/cells" && says "options of one run"
expect 2 simulate --cells "$work/cells.txt" && says --results
expect 2 simulate --cells "$work/cells.txt" --results /no/such/folder && says /no/such/folder
expect 2 simulate --cells /no/such/list --results "$work/cells" && says /no/such/list
# twice the PCIe links: host memory, which feeds them, doubles too, so that eight GPUs that stream experts gain by two
expect 0 simulate --model mixtral-8x7b --machine h200x8 --attention dp --experts offload --ep 1 --layers 8 --tokens 1K --seq 1K --forwards 2 --what-if pcie=2x --json
json "json_extract(j,'\$.baseline.speedup') BETWEEN 1.9 AND 2.01" 1
