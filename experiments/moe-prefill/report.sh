#!/bin/sh
# Plays the grids of this folder (a sweep that was cut off goes on where it stopped) and prints the tables of the README.
# Run from the root of the repository: sh experiments/moe-prefill/report.sh [FORERUN]
set -eu
forerun=${1:-build/forerun}
here=experiments/moe-prefill
out=build/experiments
mkdir -p $out

for grid in fig9 fig9-budget fig10 synthetic drift; do
    "$forerun" sweep $here/$grid.json --db $out/moe-prefill-$grid.db --top 1 >$out/moe-prefill-$grid.txt
done

# One row a played cell, with names for people: rate = prompt tokens (cached ones too) over batch completion time.
view="CREATE TEMP VIEW c AS SELECT machine || ' ' || precision AS system, gpus,
    substr(trace, instr(trace, ':') + 1) AS work, json_extract(config, '\$.route') AS route, tokens_per_gpu AS budget,
    (tokens + cached_tokens) / elapsed_s AS rate, 1.0 * cached_tokens / (tokens + cached_tokens) AS hit, mfu,
    strategy, experts, exchange, overlap, elapsed_s, wait_s, exposed_comm_s, bubble_s, elapsed_s - idle_s AS busy_s,
    CASE WHEN experts = 'asyncep' THEN 'asyncep ' || gather
         WHEN experts = 'offload' AND gpus > 1 THEN 'hybrid offload'
         WHEN experts = 'offload' THEN 'offload'
         WHEN strategy = 'pp' THEN 'PP+PP' WHEN strategy = 'tp' THEN 'TP+TP' WHEN strategy = 'dp' THEN 'dp (yardstick)'
         WHEN attention = 'tp' THEN 'TP+EP' WHEN experts = 'tp' THEN 'DP+TP'
         ELSE 'DP+EP ' || CASE overlap WHEN 'tbo' THEN 'tbo' ELSE exchange END END AS layout,
    CASE WHEN experts IN ('asyncep', 'offload') THEN 1 WHEN strategy = 'dp' THEN 2 ELSE 0 END AS ours
    FROM cells WHERE status = 'done' AND elapsed_s > 0;
  CREATE TEMP VIEW best AS SELECT *, max(rate) FROM c GROUP BY system, gpus, work, route, layout;
  CREATE TEMP TABLE duel AS SELECT a.system, a.gpus, a.work, a.layout AS ours, a.route, round(a.rate) AS ours_rate,
    round(a.mfu, 3) AS ours_mfu, a.budget AS ours_budget, b.layout AS base, round(b.rate) AS base_rate,
    round(b.mfu, 3) AS base_mfu, b.budget AS base_budget, round(a.rate / b.rate, 2) AS gain, n.layout AS base_no_pp,
    round(a.rate / n.rate, 2) AS gain_no_pp
    FROM (SELECT *, max(rate) FROM c WHERE ours = 1 GROUP BY system, gpus, work) a
    JOIN (SELECT *, max(rate) FROM c WHERE ours = 0 GROUP BY system, gpus, work) b USING (system, gpus, work)
    LEFT JOIN (SELECT *, max(rate) FROM c WHERE ours = 0 AND strategy <> 'pp' GROUP BY system, gpus, work) n
    USING (system, gpus, work);"
table() { # grid, title, query
    printf '\n## %s\n' "$2"
    sqlite3 "$out/moe-prefill-$1.db" ".mode box" "$view" "$3"
}

table fig9 "Fig. 9: MoE-Prefill against the strongest baseline, 16384 tokens per GPU and forward" \
    "SELECT system, gpus, ours, route, ours_rate, ours_mfu, base, base_rate, base_mfu, gain, base_no_pp, gain_no_pp
     FROM duel ORDER BY gpus DESC, system"
table fig9 "Fig. 9: tokens/s by layout and GPUs (empty: does not fit; best route)" \
    "SELECT system, layout, max(CASE gpus WHEN 1 THEN round(rate) END) AS g1, max(CASE gpus WHEN 2 THEN round(rate) END) AS g2,
     max(CASE gpus WHEN 4 THEN round(rate) END) AS g4, max(CASE gpus WHEN 8 THEN round(rate) END) AS g8,
     round(max(CASE gpus WHEN 8 THEN mfu END), 3) AS mfu8 FROM best GROUP BY system, layout ORDER BY system, g8 DESC"
table fig9-budget "Fig. 9 at each layout's best budget (a tenth of the requests)" \
    "SELECT system, ours, ours_budget, ours_rate, base, base_budget, base_rate, gain, base_no_pp, gain_no_pp FROM duel"
table fig9-budget "Fig. 9: tokens/s by budget" \
    "SELECT system, layout, max(CASE budget WHEN 1024 THEN round(rate) END) AS b1K, max(CASE budget WHEN 2048 THEN round(rate) END) AS b2K,
     max(CASE budget WHEN 4096 THEN round(rate) END) AS b4K, max(CASE budget WHEN 8192 THEN round(rate) END) AS b8K,
     max(CASE budget WHEN 16384 THEN round(rate) END) AS b16K, max(CASE budget WHEN 32768 THEN round(rate) END) AS b32K,
     max(CASE budget WHEN 65536 THEN round(rate) END) AS b64K FROM c GROUP BY system, layout ORDER BY system, b16K DESC"
table fig9 "Fig. 10: prefix router against vLLM's, same layout" \
    "SELECT p.system, p.gpus, p.layout, round(v.hit, 3) AS hit_vllm, round(p.hit, 3) AS hit_prefix, round(v.rate) AS rate_vllm,
     round(p.rate) AS rate_prefix, round(p.rate / v.rate, 2) AS gain FROM c p JOIN c v USING (system, gpus, layout)
     WHERE p.route = 'prefix' AND v.route = 'vllm' AND p.ours = 1 ORDER BY p.system, p.layout, p.gpus"
table fig10 "Fig. 10: the gain against our prefix shares and order, 8xH100 fp8, asyncep ce" \
    "SELECT p.work, round(v.hit, 3) AS hit_vllm, round(p.hit, 3) AS hit_prefix, round(p.rate / v.rate, 2) AS gain
     FROM c p JOIN c v USING (work) WHERE p.route = 'prefix' AND v.route = 'vllm' AND (p.hit > 0) = (v.hit > 0) ORDER BY gain"
table synthetic "Fig. 11: 8xH100 fp8, equal prompts, each layout at its best budget" \
    "SELECT work, ours, ours_budget, ours_rate, base, base_rate, gain, base_no_pp, gain_no_pp,
     round((SELECT max(rate) FROM c WHERE ours = 2 AND c.work = duel.work)) AS dp_rate,
     round(ours_rate / (SELECT max(rate) FROM c WHERE ours = 2 AND c.work = duel.work), 3) AS of_dp
     FROM duel WHERE gpus = 8 ORDER BY base_rate DESC"
table synthetic "Fig. 12: MFU by layout and GPUs: lowest and highest over the four lengths, best budget" \
    "SELECT layout, gpus, count(*) AS lengths, round(min(mfu), 3) AS low, round(max(mfu), 3) AS high,
     round(max(CASE WHEN work LIKE 'len=256,%' THEN mfu END), 3) AS m256, round(max(CASE WHEN work LIKE 'len=4K%' THEN mfu END), 3) AS m4K,
     round(max(CASE WHEN work LIKE 'len=32K%' THEN mfu END), 3) AS m32K, round(max(CASE WHEN work LIKE 'len=128K%' THEN mfu END), 3) AS m128K
     FROM best GROUP BY layout, gpus ORDER BY layout, gpus"
table synthetic "Transport: tokens/s of asyncep on 8xH100 fp8, prompts of 256 and 4K, by budget" \
    "SELECT work, layout, max(CASE budget WHEN 8192 THEN round(rate) END) AS b8K, max(CASE budget WHEN 16384 THEN round(rate) END) AS b16K,
     max(CASE budget WHEN 32768 THEN round(rate) END) AS b32K FROM c WHERE gpus = 8 AND layout LIKE 'asyncep%'
     AND work NOT LIKE 'len=128K%' GROUP BY work, layout"
table drift "Pulls in flight against drift: H200s, fp8, prompts of 1K: exposed share of the forward in %, tokens/s in thousands" \
    "SELECT gpus, CASE strategy WHEN 'dp' THEN 'dp (bound)' ELSE CASE gather WHEN 'nccl' THEN 'nccl' ELSE
     json_extract(config, '\$.\"gather-streams\"') || ' in flight' END || CASE routing WHEN 'even' THEN ', even' ELSE '' END END AS how,
     max(CASE tokens_per_gpu WHEN 8192 THEN x END) AS b8K, max(CASE tokens_per_gpu WHEN 12288 THEN x END) AS b12K,
     max(CASE tokens_per_gpu WHEN 16384 THEN x END) AS b16K, max(CASE tokens_per_gpu WHEN 32768 THEN x END) AS b32K
     FROM (SELECT *, printf('%d %%, %.1f', round(100 * exposed_comm_s / forward_s), tokens_per_s / 1000) AS x FROM cells
     WHERE status = 'done') GROUP BY gpus, how ORDER BY gpus DESC, strategy = 'dp', how"
