#!/bin/sh
# Plays the grids of this folder (a sweep that was cut off goes on where it stopped) and prints the tables of the README.
# Run from the root of the repository: sh experiments/dwdp/report.sh [FORERUN]
set -eu
forerun=${1:-build/forerun}
here=experiments/dwdp
out=build/experiments
mkdir -p $out

for grid in crossover context; do
    "$forerun" sweep $here/$grid.json --db $out/dwdp-$grid.db --top 1 >$out/dwdp-$grid.txt
done

view="CREATE TEMP VIEW c AS SELECT *, machine = 'gb200x4-nvfp4' AS nvfp4, json_extract(config, '\$.\"no-sharing\"') AS alone,
    json_extract(config, '\$.\"no-interference\"') AS calm, json_extract(config, '\$.\"gather-chunk\"') AS slice, json_extract(config, '\$.\"gather-streams\"') AS streams,
    tokens_per_gpu AS budget, replace(trace, 'batch:', '') AS work, tokens_per_s_per_gpu AS rate,
    hidden_comm_s + exposed_comm_s AS transfer_s FROM cells WHERE status = 'done';"
table() { # grid, title, query
    printf '\n## %s\n' "$2"
    sqlite3 "$out/dwdp-$1.db" ".mode box" "$view" "$3"
}

table crossover "Crossover: seconds per forward, batch 1 (fp8; alone: no sharing, no interference; nvfp4: the stand-in machine)" \
    "SELECT d.seq AS isl, round(d.compute_s, 3) AS t_compute, round(d.transfer_s, 3) AS t_prefetch,
     round(d.compute_s / d.transfer_s, 2) AS compute_by_prefetch,
     round((SELECT n.compute_s / n.transfer_s FROM c n WHERE n.nvfp4 AND n.seq = d.seq), 2) AS same_nvfp4,
     round(e.forward_s, 3) AS t_dep, round(d.forward_s, 3) AS t_dwdp, round(e.forward_s / d.forward_s, 2) AS dep_by_dwdp,
     round(v.forward_s / d.forward_s, 2) AS even_routing, round(e.forward_s / f.forward_s, 2) AS with_contention
     FROM c d JOIN c e ON e.strategy = 'ep' AND e.seq = d.seq AND e.routing = 'deepseek-v3'
     JOIN c v ON v.strategy = 'ep' AND v.seq = d.seq AND v.routing = 'even'
     JOIN c f ON f.strategy = 'dwdp' AND f.seq = d.seq AND NOT f.nvfp4 AND NOT f.alone AND NOT f.calm
     WHERE d.strategy = 'dwdp' AND NOT d.nvfp4 AND d.alone AND d.calm ORDER BY d.seq"
table context "Iteration: mean seconds per forward and rank, ISL 8K ratio 0.8, 32768 tokens per forward" \
    "SELECT strategy || CASE overlap WHEN 'tbo' THEN ' tbo' ELSE '' END || CASE routing WHEN 'even' THEN ' even' ELSE '' END AS layout,
     round(json_extract(result, '\$.busy_s.attention') / k, 3) AS attention, round(json_extract(result, '\$.busy_s.grouped') / k, 3) AS grouped,
     round(json_extract(result, '\$.busy_s.gemm') / k, 3) AS dense, round(json_extract(result, '\$.busy_s.memory') / k, 3) AS memory_bound,
     round(json_extract(result, '\$.busy_s.collective') / k, 3) AS collective, round(json_extract(result, '\$.busy_s.copy') / k, 3) AS p2p_copy,
     round(elapsed_s * gpus / k, 3) AS iteration FROM (SELECT *, CASE strategy WHEN 'ep' THEN forwards * gpus ELSE forwards END AS k FROM c)
     WHERE work = 'count=1024,len=uniform(6554,8192)' AND budget = 32768 AND NOT nvfp4 AND slice = 0 AND streams = 0"
ratio="round(d.rate) AS dwdp_rate, round(e.rate) AS ep_rate, round(d.rate / e.rate, 3) AS gain, round(e.ttft_mean_s / d.ttft_mean_s, 2) AS ttft_gain"
join="JOIN c e ON e.strategy = 'ep' AND e.work = d.work AND e.budget = d.budget AND e.machine = d.machine AND e.routing = 'deepseek-v3'
     AND e.overlap = 'none'"
table context "Throughput per GPU against ep, by lengths and tokens per forward (MNT)" \
    "SELECT d.work, d.budget AS mnt, d.precision || CASE d.nvfp4 WHEN 1 THEN ' as nvfp4' ELSE '' END AS weights, $ratio,
     round(d.rate / v.rate, 3) AS gain_even, round(d.exposed_comm_s / d.elapsed_s, 2) AS exposed_share
     FROM c d $join LEFT JOIN c v ON v.strategy = 'ep' AND v.work = d.work AND v.budget = d.budget AND v.machine = d.machine AND v.routing = 'even'
     WHERE d.strategy = 'dwdp' AND d.gpus = 4 AND d.slice = 0 AND d.streams = 0 ORDER BY d.nvfp4, d.cell"
table context "Source contention: whole pulls one at a time, three in flight, and those in slices of 2 MiB" \
    "SELECT d.work, d.budget AS mnt, round(d.rate) AS one_at_a_time, round(o.rate) AS in_flight, round(s.rate) AS sliced,
     round(d.rate / e.rate, 3) AS gain_one, round(o.rate / e.rate, 3) AS gain_in_flight, round(s.rate / e.rate, 3) AS gain_sliced
     FROM c d JOIN c o ON o.strategy = 'dwdp' AND o.streams = 3 AND o.slice = 0 AND o.work = d.work AND o.budget = d.budget
     JOIN c s ON s.strategy = 'dwdp' AND s.slice > 0 AND s.work = d.work AND s.budget = d.budget $join
     WHERE d.strategy = 'dwdp' AND d.slice = 0 AND d.streams = 0 AND NOT d.nvfp4 ORDER BY d.work DESC, d.budget"
table context "Group of 3 against a group of 4, per GPU, both against ep of 4" \
    "SELECT d.gpus, round(d.rate) AS rate, round(d.rate / e.rate, 3) AS gain FROM c d JOIN c e ON e.strategy = 'ep' AND e.budget = d.budget
     AND e.work = 'count=512,len=uniform(13107,16384)' AND e.routing = 'deepseek-v3' AND e.overlap = 'none'
     WHERE d.strategy = 'dwdp' AND d.work LIKE '%uniform(13107,16384)' AND d.budget = 32768"
