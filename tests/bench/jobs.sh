#!/usr/bin/env bash
# make bench, whole jobs: seconds, memory, ops per second of what a user does. One run each, on an idle machine; figures go to the README.
# FORERUN_MOONCAKE = the full conversation trace (12,031 requests; shipped is its first 1,000).
set -u
forerun=${FORERUN:-build/forerun}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
job() { # NAME COMMAND...
    local name=$1
    shift
    /usr/bin/env bash -c 'TIMEFORMAT=%R; time "$@" >'"$tmp/out"' 2>'"$tmp/err" bash "$@" 2>"$tmp/time" || { echo "$name: failed: $(tail -n 1 "$tmp/err")"; return; }
    local ops
    ops=$(grep -E '^ops |cells in' "$tmp/out" | sed -E 's/ +/ /g' | cut -c1-140)
    printf '%-64s %7s s   %s\n' "$name" "$(tail -n 1 "$tmp/time")" "$ops"
}
azure="poisson:rate=12,count=10000,len=trace(azure-code)"
job "start-up (list models)" "$forerun" list models
for skew in even deepseek-v3; do
    job "10,000 requests, Azure code lengths, 12/s, 30B, 8 dp, $skew" "$forerun" simulate --model qwen3-30b-a3b --machine h200x8 --strategy dp --trace "$azure" --skew $skew
    job "the same as one ep group of 8, $skew" "$forerun" simulate --model qwen3-30b-a3b --machine h200x8 --strategy ep --trace "$azure" --skew $skew
    if [ -n "${FORERUN_MOONCAKE:-}" ]; then
        job "Mooncake, 12,031 requests, 235B fp8, asyncep on 8, $skew" "$forerun" simulate --model qwen3-235b-a22b --machine h200x8 --precision fp8 --strategy asyncep \
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
job "sweep of 10,000 single-forward cells, 94 layers, 8 ranks" "$forerun" sweep "$tmp/sweep.json" --db "$tmp/sweep.db"
