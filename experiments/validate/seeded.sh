#!/usr/bin/env bash
# Twelve more cells, drawn from a commit's hash once the model is frozen: run and reported once.
#   experiments/validate/seeded.sh COMMIT >seeded.txt       then SET=seeded.txt predict.sh and run.sh, parts s1 (one GPU) and s2 (two)
# Every choice is a byte of sha256(commit, cell): nobody picks.
set -eu
commit=${1:?the hash of the commit that froze the model}
byte() { # CELL CHOICE COUNT: a number below COUNT
    local hex
    hex=$(printf '%s cell %s choice %s' "$commit" "$1" "$2" | sha256sum | cut -c 1-8)
    echo $((0x$hex % $3))
}
pick() { # CELL CHOICE WORDS...
    local cell=$1 choice=$2
    shift 2
    local at
    at=$(byte "$cell" "$choice" $#)
    shift "$at"
    echo "$1"
}
echo "# drawn from commit $commit"
for cell in $(seq 1 12); do
    model=$(pick "$cell" model qwen3-235b-a22b qwen3-30b-a3b mixtral-8x7b)
    tokens=$(pick "$cell" tokens 768 1536 3K 6K 10K 12K 20K 24K 40K 48K)
    seq=$(pick "$cell" seq 192 384 768 1536 3K 6K 12K)
    skew=$(pick "$cell" skew even uniform uniform deepseek-v3 zipf:0.5 hot:4)
    value() { local n=${1%K}; [ "$n" = "$1" ] && echo "$1" || echo $((n * 1024)); }
    [ "$(value "$seq")" -gt "$(value "$tokens")" ] && seq=$tokens
    tokens=$(($(value "$tokens") / $(value "$seq") * $(value "$seq")))
    layers=8
    [ "$model" = qwen3-30b-a3b ] && layers=16
    if [ "$cell" -le 6 ]; then
        part="s1" layout="--strategy dp"
    else
        part="s2"
        layout=$(pick "$cell" layout "--strategy tp" "--strategy ep" "--strategy ep --ep-exchange agrs" "--strategy pp" "--strategy asyncep" \
            "--strategy asyncep --gather nccl" "--strategy dwdp" "--strategy dp")
    fi
    regime=$(pick "$cell" regime sustained sustained sustained burst)
    printf 'seeded-%02d | %s | %s --model %s --layers %s --tokens %s --seq %s --skew %s --forwards 8 --regime %s\n' \
        "$cell" "$part" "$layout" "$model" "$layers" "$tokens" "$seq" "$skew" "$regime"
done
