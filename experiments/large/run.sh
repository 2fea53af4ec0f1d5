#!/usr/bin/env bash
# The set for 4 or 8 GPUs on such a machine: anchors first, then what all GPUs do at once, then the cells; all into OUT.
#   experiments/large/run.sh ENGINE four|eight OUT [SECONDS]
set -u
here=$(cd "$(dirname "$0")" && pwd) engine=$1 part=$2 out=$3 limit=${4:-500} start=$SECONDS
mkdir -p "$out"
timeout 75 "$engine" calibrate --anchors --device 0 --limit 60 --out "$out/anchors.txt" || echo "no anchors" >&2
gpus=$(nvidia-smi -L | wc -l)
timeout 120 "$engine" calibrate --quick --device "$(seq -s, 0 $((gpus - 1)))" --limit 90 --out "$out/ranks.txt" || echo "no collectives, no pulls" >&2
anchors=; [ -s "$out/anchors.txt" ] && anchors=$out/anchors.txt
SET=$here/set.txt ANCHORS=$anchors exec "$here/../validate/run.sh" "$engine" "$part" "$out" $((limit - SECONDS + start))
