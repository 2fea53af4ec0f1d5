#!/usr/bin/env bash
# make bench, whole jobs: seconds, CPU seconds, memory, ops per second of what a user does, each the best of ROUNDS runs. Figures go to the README.
# FORERUN_MOONCAKE = the full conversation trace (12,031 requests; shipped is its first 1,000).
# FORERUN_BEFORE = another build of the program: it does every job too, the two in turns, and its figures stand beside.
set -u
forerun=${FORERUN:-build/forerun} before=${FORERUN_BEFORE:-} rounds=${ROUNDS:-1}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
run() { # PROGRAM WHERE ARGUMENTS...: one round; keeps the one of least CPU time in WHERE.best
    local program=$1 where=$2
    shift 2
    rm -f "$tmp"/sweep.db*
    /usr/bin/time -f '%e %U %S %M' -o "$where.time" "$program" "$@" >"$where.out" 2>"$where.err" || return 1
    awk '{ printf "%.2f %.2f %.1f\n", $1, $2 + $3, $4 / 1024 }' "$where.time" >"$where.now"
    if [ ! -f "$where.best" ] || cat "$where.now" "$where.best" | awk '{ cpu[NR] = $2 } END { exit !(cpu[1] < cpu[2]) }'; then mv "$where.now" "$where.best"; fi
}
job() { # NAME ARGUMENTS...
    local name=$1 i
    shift
    rm -f "$tmp"/*.best
    for ((i = 0; i < rounds; i++)); do
        run "$forerun" "$tmp/now" "$@" || { echo "$name: failed: $(tail -n 1 "$tmp/now.err")"; return; }
        [ -z "$before" ] || run "$before" "$tmp/old" "$@" || { echo "$name: before: failed: $(tail -n 1 "$tmp/old.err")"; return; }
    done
    local ops
    ops=$(grep -E '^simulation |cells in' "$tmp/now.out" | sed -E 's/ +/ /g' | cut -c1-120)
    printf '%-64s %6s s, CPU %6s s, %5s MiB' "$name" $(cat "$tmp/now.best")
    [ -z "$before" ] || printf '   before: %6s s, CPU %6s s, %5s MiB' $(cat "$tmp/old.best")
    printf '   %s\n' "$ops"
}
azure="poisson:rate=12,count=10000,len=trace(azure-code)"
job "start-up (list models)" list models
job "start-up (simulate: tables, fits, one forward of one layer)" simulate --model qwen3-30b-a3b --machine h200x1 --strategy dp --layers 1 --tokens 1K --seq 1K
for skew in even deepseek-v3; do
    job "10,000 requests, Azure code lengths, 12/s, 30B, 8 dp, $skew" simulate --model qwen3-30b-a3b --machine h200x8 --strategy dp --trace "$azure" --skew $skew
    job "the same as one ep group of 8, $skew" simulate --model qwen3-30b-a3b --machine h200x8 --strategy ep --trace "$azure" --skew $skew
    if [ -n "${FORERUN_MOONCAKE:-}" ]; then
        job "Mooncake, 12,031 requests, 235B fp8, asyncep on 8, $skew" simulate --model qwen3-235b-a22b --machine h200x8 --precision fp8 --strategy asyncep \
            --trace "$FORERUN_MOONCAKE" --format mooncake --budget 16K --chunk-tokens 16K --gather-streams 1 --skew $skew
    fi
done
cat >"$tmp/sweep.json" <<'J'
{ "title": "10,000 single forwards of 94 layers on 8 ranks",
  "base": { "model": "qwen3-235b-a22b", "precision": "fp8", "forwards": 1, "skew": "even" },
  "cells": [ { "strategy": ["tp", "ep", "asyncep", "dwdp"], "machine": ["h200x8", "h100x8"], "regime": ["burst", "sustained"],
               "seq": [256, 512, 1024, 2048, 4096],
               "tokens": [4096, 8192, 12288, 16384, 20480, 24576, 28672, 32768, 36864, 40960, 45056, 49152, 53248, 57344, 61440],
               "what-if": ["none", "nvlink=2x", "hbm=2x", "flops=2x", "nvlink=0.5x", "hbm=0.5x", "flops=0.5x", "launch=2x"] },
             { "strategy": "pp", "micro-batches": [8, 16], "machine": "h200x8", "seq": [256, 512, 1024, 2048, 4096],
               "tokens": [8192, 16384, 24576, 32768, 40960], "what-if": ["none", "nvlink=2x", "hbm=2x", "flops=2x", "nvlink=0.5x", "hbm=0.5x", "flops=0.5x", "launch=2x"] } ] }
J
job "sweep of 10,000 single-forward cells, 94 layers, 8 ranks" sweep "$tmp/sweep.json" --db "$tmp/sweep.db"
sed -E 's/"(name|gpus[a-z_]*)": *("h200x8"|8)/"\1": 64/; s/"name": 64/"name": "h200x64"/' engine/builtin/machines/h200x8.json >"$tmp/h200x64.json"
job "asyncep on 64 GPUs, 94 layers, 8 forwards of 8K tokens, not folded" simulate --model qwen3-235b-a22b --precision fp8 --machine "$tmp/h200x64.json" --strategy asyncep \
    --tokens 8K --seq 1K --forwards 8 --no-fold
