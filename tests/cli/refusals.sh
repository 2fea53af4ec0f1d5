# An accepted flag is never ignored: it acts or is refused by name, with exit code 2.
refuse() { # refuse NAME ARGS...
    local name=$1
    shift
    expect 2 simulate $small "$@" && says "$name"
}
refuse --strategy                                  # no layout at all
refuse --slots --strategy tp --slots 4
refuse --rate --strategy tp --rate 3
refuse --format --strategy tp --format azure
refuse --offline --strategy tp --offline
refuse --budget --strategy tp --budget 4K
refuse --route --strategy tp --route prefix
refuse --tokens --strategy tp --trace azure-code   # $small says --tokens
refuse --gather --strategy ep --gather nccl
refuse --gather-chunk --strategy tp --gather-chunk 1M
refuse --gather-chunk --strategy asyncep --gather-chunk 1
refuse --wait --strategy tp --wait moe
refuse --ep-exchange --strategy asyncep --ep-exchange agrs
refuse --overlap --strategy tp --overlap tbo
refuse --overlap-stages --strategy ep --overlap tbo --overlap-stages 2
refuse --micro-batches --strategy tp --micro-batches 4
refuse --chunking --strategy tp --chunking balanced
expect 2 simulate --strategy pp --trace azure-code --requests 5 --chunk-tokens 1K --chunking balanced && says --chunking
refuse --window --strategy asyncep --window 2
refuse --ep --strategy tp --ep 4
refuse --experts --strategy tp --experts ep
refuse --skew --strategy ep --skew even --routing counts.txt
refuse --no-kv-cache --strategy dp --no-kv-cache --prefix 512
refuse --gpus --strategy dp --gpus 16
refuse --strategy --strategy tp --tp 3
refuse --strategy --strategy fastest
refuse --tokens --strategy tp --tokens nan
refuse --tokens --strategy tp --tokens -4
refuse --tokens --strategy tp --tokens 99999999999999999999
refuse --rate --strategy tp --trace azure-code --rate inf
refuse --precision --strategy tp --precision fp4
refuse --precision --strategy tp --machine a100x8 --precision fp8
refuse no-such-model --strategy tp --model no-such-model
refuse no-such-machine --strategy tp --machine no-such-machine
refuse no-such-folder --strategy tp --costs no-such-folder
refuse /dev/null --strategy tp --costs /dev/null
refuse --what-if --strategy tp --what-if warp=2x
expect 2 plan --strategy tp --trace azure-code && says --trace

# Experiment files: one clear line for each kind of damage.
damage() { # damage NAME TEXT
    printf '%s' "$2" >"$work/$1.json"
    expect 2 simulate "$work/$1.json" && says "$1.json"
}
damage empty ''
damage truncated '{"base": {"strategy": "tp"'
damage list '[]'
damage key '{"base": {"strategy": "tp"}, "cell": []}'
damage option '{"base": {"strategy": "tp", "tokns": 4}}'
damage twice '{"base": {"strategy": "tp", "tokens": 4, "tokens": 8}}'
damage type '{"base": {"strategy": "tp", "tokens": {}}}'
damage value '{"base": {"strategy": "tp", "tokens": -1}}'
damage trailing '{"base": {"strategy": "tp"}} x'
damage deep "$(printf '[%.0s' $(seq 5000))"
damage none '{"base": {"strategy": "tp"}, "cells": []}'
printf '\0\377\376' >"$work/binary.json"
expect 2 simulate "$work/binary.json" && says binary.json
expect 2 simulate "$work" && says "$work"
# options outside base and cells are shown their place; texts are written in quotes
damage top '{"model": "qwen3-30b-a3b"}' && says base
damage number '{"base": {"model": 3}}' && says base.model
# a file that cannot be written is refused before the work, and nothing is left behind
for flag in --db --csv --perfetto; do
    refuse $flag --strategy tp $flag /no/such/folder/x && says /no/such/folder
    refuse $flag --strategy tp $flag "$work" && says "is a folder"
done
# a device takes the bytes as they come and stays what it is
expect 0 simulate $small --strategy tp --csv /dev/stdout --json && prints gemm_qkv
[ -L /dev/stdout ] && pass || fail "/dev/stdout was replaced"
# every cell of a sweep refused: bad input, though the reasons are stored
echo '{"base": {"strategy": "tp", "machine": "h200x8"}, "cells": [{"model": ["no-such-model", "nor-this"]}]}' >"$work/none.json"
timeout 60 "$forerun" sweep "$work/none.json" --db "$work/none.db" >"$out" 2>"$errors"
[ $? -eq 2 ] && says "every cell was refused" && prints no-such-model || fail "a sweep of refused cells looks like success"
[ -e "$work/none.db-wal" ] && fail "a closed result file has a journal beside it" || pass
# lists of lengths
refuse --tokens --strategy dp --seqs 1,2 # $small says --tokens
for list in 0 1,,2 5x0 abc 1/2/3/4/5/6/7/8/9; do expect 2 simulate --machine h200x8 --strategy dp --replicas 8 --model qwen3-30b-a3b --layers 2 --seqs "$list" && says --seqs; done
refuse --seqs --strategy dp --trace azure-code --seqs 1,2
# More lanes than a plan can name.
sed 's/"gpus": *8,/"gpus": 20000,/; s/"name": *"h200x8"/"name": "many"/; s/"gpus_per_domain": *8/"gpus_per_domain": 20000/; s/"network_rate": *0/"network_rate": 50/' engine/builtin/machines/h200x8.json >"$work/many.json"
expect 2 plan --machine "$work/many.json" --model qwen3-30b-a3b --layers 2 --strategy asap --dp 2000 --ep 64 --gpus 2064 --tokens 128 --seq 64 && says lanes
# more pieces of a forward than ids can name
expect 2 simulate --model olmoe-1b-7b --machine h200x2 --layers 3 --strategy pp --chunk-tokens 100 && says --chunk-tokens
