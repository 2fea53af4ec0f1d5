# validate: runs stored as if they had been measured, some perturbed by known factors; the report must find them.
rm -f "$work"/v.db
for s in ep tp asyncep; do
    "$forerun" simulate --model qwen3-30b-a3b --machine h200x2 --layers 4 --tokens 4K --seq 1K --forwards 4 --strategy $s --db "$work/v.db" >"$out" 2>"$errors" || fail "simulate --db $s" "$(cat "$errors")"
done
"$forerun" simulate --model qwen3-30b-a3b --machine h200x2 --layers 4 --strategy dp --trace "poisson:rate=200,len=lognormal(900,0.8),min=64,max=4K" --requests 60 --db "$work/v.db" >"$out" 2>"$errors"
expect 2 validate "$work/v.db" && says "measured run"
sqlite3 "$work/v.db" "UPDATE runs SET kind='run'"
# unperturbed: no error anywhere, P = 2 ranks, requests too
expect 0 validate "$work/v.db" --json
json "json_array_length(json_extract(j,'\$.runs'))" 4
json "abs(json_extract(j,'\$.summary.forward.worst')) < 1e-9" 1
json "json_extract(j,'\$.summary.ranked_alike') = json_extract(j,'\$.summary.ranked_pairs') AND json_extract(j,'\$.summary.ranked_pairs') > 0" 1
json "(SELECT count(*) FROM json_each(json_extract(j,'\$.runs')) WHERE json_extract(value,'\$.unjoined.predicted')+json_extract(value,'\$.unjoined.measured') > 0)" 0
json "json_extract(j,'\$.runs[3].requests.count')" 60
json "json_extract(j,'\$.summary.single_requests.count')" 60
json "json_extract(j,'\$.summary.single_forwards.count') > 12" 1
# a replay says what its queue makes of kernels that take a little less or more; other runs have no queue
json "json_array_length(json_extract(j,'\$.runs[3].service'))" 4
json "json_array_length(json_extract(j,'\$.runs[0].service'))" 0
json "json_extract(j,'\$.runs[3].service[3].ttft_s.mean') > json_extract(j,'\$.runs[3].predicted.ttft_s.mean') AND json_extract(j,'\$.runs[3].service[0].ttft_s.mean') < json_extract(j,'\$.runs[3].predicted.ttft_s.mean')" 1
json "(SELECT count(DISTINCT substr(json_extract(value,'\$.name'),1,6)) FROM json_each(json_extract(j,'\$.runs[0].lanes')))" 2
# run 1: expert_up takes 10 % longer, and the forward with it
sqlite3 "$work/v.db" "CREATE TEMP TABLE d AS SELECT 0.1*sum(end_ns-start_ns)*1e-9/4 AS s FROM spans WHERE run=1 AND kind='expert_up' AND rank=(SELECT rank FROM spans WHERE run=1 ORDER BY end_ns DESC, rank LIMIT 1);
UPDATE spans SET end_ns=end_ns+(end_ns-start_ns)/10 WHERE run=1 AND kind='expert_up';
UPDATE runs SET forward_s=forward_s+(SELECT s FROM d), compute_s=compute_s+(SELECT s FROM d), elapsed_s=elapsed_s+4*(SELECT s FROM d) WHERE id=1;"
expect 0 validate "$work/v.db" --run 1 && prints "1. expert_up is predicted 9.1 % too short"
expect 0 validate "$work/v.db" --run 1 --json
json "json_extract(j,'\$.runs[0].causes[0].kind')" expert_up
json "(SELECT round(json_extract(value,'\$.total_error'),3) FROM json_each(json_extract(j,'\$.runs[0].kinds')) WHERE json_extract(value,'\$.name')='expert_up')" -0.091
json "(SELECT count(*) FROM json_each(json_extract(j,'\$.runs[0].kinds')) WHERE abs(json_extract(value,'\$.total_error')) > 0.001)" 1
# run 2: 1 ms of idle a forward more; run 3: 2 ms of waiting
sqlite3 "$work/v.db" "UPDATE runs SET forward_s=forward_s+0.001, idle_s=idle_s+0.001, elapsed_s=elapsed_s+0.004 WHERE id=2;
UPDATE runs SET forward_s=forward_s+0.002, wait_s=wait_s+0.002, elapsed_s=elapsed_s+0.008 WHERE id=3;"
expect 0 validate "$work/v.db" --run 2 && prints "1. gaps between kernels" && prints "+4.000 ms"
expect 0 validate "$work/v.db" --run 3 && prints "1. waiting for other ranks" && prints "+8.000 ms"
expect 0 validate "$work/v.db" && prints "all 4 runs" && prints "top causes"
# the run's own routing: all tokens to a few experts makes another prediction than the assumed one
"$forerun" simulate --model qwen3-30b-a3b --machine h200x1 --layers 2 --tokens 4K --seq 1K --forwards 2 --strategy dp --db "$work/r.db" >"$out" 2>"$errors"
sqlite3 "$work/r.db" "UPDATE runs SET kind='run'; INSERT INTO attached SELECT 1, 'routing', '# forerun routing E=128 layers=2' || char(10) || group_concat(l || (SELECT group_concat(CASE WHEN e < 8 THEN ' 8192' ELSE ' 0' END, '') FROM (WITH RECURSIVE n(e) AS (SELECT 0 UNION ALL SELECT e+1 FROM n WHERE e<127) SELECT e FROM n)), char(10)) || char(10) FROM (SELECT 0 AS l UNION ALL SELECT 1)"
expect 0 validate "$work/r.db" --json
json "json_extract(j,'\$.runs[0].routing')" recorded
json "json_extract(j,'\$.runs[0].error') < -0.05" 1
expect 0 validate "$work/r.db" --assumed-routing --json
json "abs(json_extract(j,'\$.runs[0].error')) < 1e-9" 1
# anchors: a GPU that does everything 10 % slower than the table is met by its anchors
grep -E '^#|^(gemm|gemm_qkv|gemm_o|expert_up|expert_down|attention) ' kernels/measured/h200.txt | grep -v '^## ' |
    awk '/^#/ {print; next} /regime=/ && !/seeded|duty=|gap_ms|at_ms/ {sub(/ card=[0-9a-f]*/, ""); sub(/ *##.*/, ""); for (i = 1; i <= NF; i++) if ($i ~ /^ns=/) {split($i, a, "="); $i = "ns=" int(a[2] * 1.1)} else if ($i ~ /^p[19]0=/) $i = ""; gsub(/  +/, " "); print}' >"$work/anchors.txt"
expect 0 validate "$work/r.db" --assumed-routing --anchors "$work/anchors.txt" --json
json "json_extract(j,'\$.runs[0].anchored_error') > 0.05 AND json_extract(j,'\$.runs[0].anchored_error') < 0.13" 1
json "json_extract(j,'\$.runs[0].kinds[0].anchored_error') > 0.05 AND abs(json_extract(j,'\$.runs[0].kinds[0].total_error')) < 1e-9" 1
json "json_extract(j,'\$.summary.kinds[0].anchored_error') > 0.05" 1
expect 0 validate "$work/r.db" --assumed-routing --anchors "$work/anchors.txt" --run 1 && prints "total anchored"
# runs of a list keep their names; several stores become one
echo "up-first | --layers 2 --tokens 4K --seq 1K --forwards 2 --strategy dp" >"$work/list.txt"
mkdir -p "$work/list"
rm -f "$work"/named.db "$work"/both.db
expect 0 simulate --model qwen3-30b-a3b --machine h200x1 --cells "$work/list.txt" --results "$work/list" --db "$work/named.db"
sqlite3 "$work/named.db" "UPDATE runs SET kind='run'"
experiments/validate/merge.sh "$work/both.db" "$work/v.db" "$work/named.db" && pass || fail "merge.sh"
expect 0 validate "$work/both.db" && prints "all 5 runs" && prints "up-first: qwen3-30b-a3b"
expect 0 validate "$work/both.db" --run 5 --json
json "json_extract(j,'\$.runs[0].cell')" up-first
json "abs(json_extract(j,'\$.runs[0].error')) < 1e-9 AND json_extract(j,'\$.runs[0].unjoined.measured') = 0" 1
# both timelines in one Perfetto file, under the same ids
expect 0 validate "$work/v.db" --run 3 --perfetto "$work/twins.json"
live=$(sqlite3 "$work/v.db" "SELECT count(*) FROM spans WHERE run=3")
[ "$(sqlite3 :memory: "SELECT sum(json_extract(value,'\$.ph')='X') FROM json_each(CAST(readfile('$work/twins.json') AS TEXT),'\$.traceEvents')")" = $((2 * live)) ] && pass || fail "twins: not both timelines"
expect 2 validate "$work/v.db" --perfetto "$work/x.json" && says "--run"
expect 2 validate "$work/v.db" --run 99 && says "measured run"
if command -v gnuplot >/dev/null; then
    for f in scatter op-errors twins; do
        expect 0 plot $f "$work/v.db" -o "$work/$f.svg" $([ $f = twins ] && echo --run 3)
        [ -s "$work/$f.svg" ] && pass || fail "plot $f drew nothing"
    done
fi
