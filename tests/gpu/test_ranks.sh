#!/usr/bin/env bash
# The engine on two GPUs, and with PARTS="four asap4" on four: every layout gives the logits that one GPU gives on the same sequences.
#   tests/gpu/test_ranks.sh [ENGINE [OUT]]        PARTS="tp pp ep asap gather offload weights fp8 four asap4"  ONLY="@(tp2|ep2-*)"
#                                                 SHARE=1/3: every third check, so that three processes share the work; LIMIT=SECONDS
# Small random Qwen3-MoE models, so that all of it takes a minute; lengths are mixed, ranks may be empty, routing may be
# skewed. `same`: bit for bit; `near`: within a tolerance, see below. Every run has a time limit.
set -u
shopt -s extglob
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/ranks}
parts=${PARTS:-tp pp ep asap gather offload weights fp8} only=${ONLY:-*} share=${SHARE:-0/1} met=0 gpus=2 limit=${LIMIT:-600}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out"
. "$(dirname "$0")/lib.sh"

# tiny: 8 query and 2 KV heads, 16 experts; wide: more ranks than KV heads, 64 experts of which 8 are chosen; blocks: tiny
# with heads of 128, so that two ranks cut no block of 128 x 128
cat >"$out/tiny.json" <<'JSON'
{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
 "num_key_value_heads": 2, "head_dim": 64, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "norm_topk_prob": true,
 "vocab_size": 1024, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "hidden_act": "silu", "intermediate_size": 1024,
 "max_position_embeddings": 8192, "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": false}
JSON
sed 's/"num_key_value_heads": 2/"num_key_value_heads": 1/; s/"num_experts": 16/"num_experts": 64/; s/"num_experts_per_tok": 4/"num_experts_per_tok": 8/; s/"head_dim": 64/"head_dim": 128/' \
    "$out/tiny.json" >"$out/wide.json"
sed 's/"head_dim": 64/"head_dim": 128/' "$out/tiny.json" >"$out/blocks.json"

# Every check is one or two cells of a list: all of it then runs in one process, which starts GPUs and libraries once.
list=$out/cells checks=$out/checks log=$out/log results=$out/results
mkdir -p "$results"
rm -f "$list" "$checks" "$log" "$results"/*.json "$out"/*.bits
cell() { # NAME flags...: its logits in NAME.bits
    grep -qs "^$1 |" "$list" || echo "$1 | ${*:2} --logits $out/$1.bits" >>"$list"
}
# Is this check asked for, and this process's?
mine() { # NAME
    # shellcheck disable=SC2254
    case "$1" in $only) ;; *) return 1 ;; esac
    met=$((met + 1))
    [ $((met % ${share#*/})) -eq "${share%/*}" ]
}
reference() { # MACHINE flags...: the name of its cell, one for all checks with these flags
    local name; name=ref-$1-$(echo "${*:2}" | cksum | cut -d' ' -f1)
    cell "$name" --machine "$1" --strategy dp "${@:2}"
    echo "$name"
}
compare() { # NAME LIMITS SEQUENCES FLAGS -- LAYOUT-FLAGS; SEQUENCES as --seqs takes them, a list per attention group
    local name=$1 limits=$2 seqs=$3 flags=() ref; shift 3
    mine "$name" || return
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    ref=$(reference h200x1 "${flags[@]}" --seqs "$(echo "$seqs" | tr / , | sed 's/^,*//; s/,*$//; s/,,*/,/g')")
    cell "$name" --machine "h200x$gpus" "${flags[@]}" --seqs "$seqs" "$@"
    echo "$name $ref $limits" >>"$checks"
}
same() { local name=$1; shift; compare "$name" "" "$@"; }
# Partial sums are rounded to bf16 where one GPU adds them in fp32: each of the 2 L sums of a residual stream then errs by
# up to 2^-9 of itself once more, and one GPU's own bf16 errs by some 2^-9 a few times per sum. rms of all logits within
# 2^-7, of any row within 2^-4: a token near the border between two experts may take the other one. Measured: rms 0.4 to
# 0.9 * 10^-3, worst row 3.4 * 10^-3.
near() { local name=$1; shift; compare "$name" "--rms 0.0078 --row 0.0625" "$@"; }
# Rows that travel in e4m3 (a scale for 128) are off by up to 2^-4 of an element; a block's result errs by a mean over
# many of them, and tokens near a border change experts.
rough() { local name=$1; shift; compare "$name" "--rms 0.06 --row 0.25" "$@"; }

# fp8: a partial sum rounded once more moves an element by 2^-9, which makes one e4m3 rounding in fifty go the other way, by
# 6 %: sqrt(1 / 50) * 6 % = 0.8 % of a product, where one GPU's own rounding to e4m3 is off by 2.6 %. Measured: random weights
# rms 1.0 to 1.7 * 10^-3, worst row 3.4 * 10^-3; checkpoints, whose blocks add more to the stream, 1.2 * 10^-2 and 3.2 * 10^-2.
near8() { local name=$1; shift; compare "$name" "--rms 0.03 --row 0.125" "$@"; }

tiny=(--model "$out/tiny.json" --candidates -1 --forwards 2) wide=(--model "$out/wide.json" --candidates -1 --forwards 2)
blocks=(--model "$out/blocks.json" --candidates -1 --forwards 2 --precision fp8) wide8=("${wide[@]}" --precision fp8)
mixed=1,37,512,129,64x3,700,8,255 halves=1,37,512,129,64/64x2,700,8,255
if has tp; then
    near tp2 $mixed "${tiny[@]}" -- --strategy tp
    near tp2-candidates $mixed --model "$out/tiny.json" --candidates 3 --forwards 2 -- --strategy tp
    near tp2-wide $mixed "${wide[@]}" -- --strategy tp
    near tp2-cached 64x3,17,200 "${tiny[@]}" --prefix 96 -- --strategy tp
    near dp2-by-width $halves "${tiny[@]}" -- --attention dp --experts tp --tp 1 --dp 2
    near tp2-ep2 $mixed "${tiny[@]}" -- --attention tp --experts ep --tp 2 --ep 2
    near tp2-ep2-agrs $mixed "${tiny[@]}" -- --attention tp --experts ep --tp 2 --ep 2 --ep-exchange agrs
fi
if has pp; then
    same pp2 $mixed "${tiny[@]}" -- --strategy pp --micro-batches 1 --no-kv-cache
    near pp2-micro-batches $mixed "${tiny[@]}" --forwards 4 -- --strategy pp --micro-batches 4
    near pp2-chunks $mixed "${tiny[@]}" --forwards 3 -- --strategy pp --micro-batches 1 --chunk-tokens 200
    near pp2-single 1 --model "$out/tiny.json" --candidates 2 -- --strategy pp --micro-batches 4
fi
if has ep; then
    for x in a2a agrs a2a-k; do
        near "ep2-$x" $halves "${tiny[@]}" -- --strategy ep --ep-exchange $x
        near "ep2-$x-hot" $halves "${tiny[@]}" --skew hot:4 -- --strategy ep --ep-exchange $x
        near "ep2-$x-wide" $halves "${wide[@]}" -- --strategy ep --ep-exchange $x
        near "ep2-$x-tbo" $halves "${tiny[@]}" -- --strategy ep --ep-exchange $x --overlap tbo
    done
    rough ep2-a2a-fp8 $halves "${tiny[@]}" -- --strategy ep --ep-exchange a2a-fp8
    rough ep2-a2a-fp8-parts $halves "${tiny[@]}" -- --strategy ep --ep-exchange a2a-fp8 --overlap expert-groups --overlap-stages 2
    rough ep2-a2a-fp8-tbo $halves "${tiny[@]}" -- --strategy ep --ep-exchange a2a-fp8 --overlap tbo
    near ep2-zipf $halves "${tiny[@]}" --skew zipf:6 -- --strategy ep
    near ep2-empty-rank 300,5/ "${tiny[@]}" -- --strategy ep
    near ep2-parts $halves "${tiny[@]}" -- --strategy ep --overlap expert-groups --overlap-stages 2
fi
# Two layouts, the same bits.
alike() { # NAME SEQUENCES FLAGS -- LAYOUT-FLAGS -- OTHER-LAYOUT-FLAGS
    local name=$1 seqs=$2 flags=() one=() ref; shift 2
    mine "$name" || return
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    flags+=(--machine "h200x$gpus" --seqs "$seqs")
    shift
    while [ "$1" != -- ]; do one+=("$1"); shift; done
    shift
    ref=as-$(echo "${flags[*]} ${one[*]}" | cksum | cut -d' ' -f1)
    cell "$ref" "${flags[@]}" "${one[@]}"
    cell "$name" "${flags[@]}" "$@"
    echo "$name $ref" >>"$checks"
}
# A layout that cannot be ends with exit 1 and a line that says why.
refused() { # NAME TEXT GPUS FLAGS
    local name=$1 said=$2 on=$3 text; shift 3
    mine "$name" || return
    if text=$(timeout 40 "$engine" run --no-predict --json --machine "h200x$on" "$@" 2>&1 >/dev/null); then bad "$name: was not refused"; return; fi
    case "$text" in *"$said"*) ok; printf '%-26s refused\n' "$name" ;; *) bad "$name: $(echo "$text" | tail -n 2 | cut -c 1-300)" ;; esac
}
# A list for each of the two batches of a group. Experts on other GPUs than attention, sums as ep's.
pairs() { # NAME LAYOUT-FLAGS: pairs of batches, uneven, one empty, one of a single token; skewed routing; a cached prefix
    local name=$1; shift
    near "$name" "$halves" "${tiny[@]}" --forwards 3 -- --strategy asap "$@"
    near "$name-hot" "$halves" "${tiny[@]}" --skew hot:4 -- --strategy asap "$@"
    near "$name-zipf" "$halves" "${tiny[@]}" --skew zipf:6 -- --strategy asap "$@"
    near "$name-wide" "$halves" "${wide[@]}" -- --strategy asap "$@"
    near "$name-empty" "300,5/" "${tiny[@]}" -- --strategy asap "$@"
    near "$name-one-token" "1/700" "${tiny[@]}" -- --strategy asap "$@"
    near "$name-cached" 64,17/200,64 "${tiny[@]}" --prefix 96 -- --strategy asap "$@"
    near "$name-candidates" "$halves" --model "$out/tiny.json" --candidates 3 --forwards 2 -- --strategy asap "$@"
}
if has asap; then
    pairs asap1-1 --dp 1 --ep 1
fi
if has asap4; then
    gpus=4
    pairs asap-tp2-2 --tp 2 --dp 1 --ep 2
    two=1,37,512/129,64/64x2/700,8,255 # two attention groups
    near asap2-2 $two "${tiny[@]}" --forwards 3 -- --strategy asap --dp 2 --ep 2
    near asap2-2-zipf $two "${tiny[@]}" --skew zipf:6 -- --strategy asap --dp 2 --ep 2
    near asap2-2-idle-group 300,5/64// "${tiny[@]}" --forwards 4 -- --strategy asap --dp 2 --ep 2
    near asap2-2-uneven 4000/3000/8/16 "${tiny[@]}" --forwards 8 -- --strategy asap --dp 2 --ep 2
    gpus=2
fi
# Weights come to the tokens: the bits of dp on as many GPUs, or on one per attention group, where nothing travels.
twin() { # NAME GPUS[:GROUPS] FLAGS -- LAYOUT-FLAGS
    mine "$1" || return
    local name=$1 on=${2%:*} groups=${2#*:} flags=() ref; shift 2
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    ref=$(reference "h200x$groups" "${flags[@]}")
    cell "$name" --machine "h200x$on" "${flags[@]}" "$@"
    echo "$name $ref" >>"$checks"
}
if has gather; then
    for model in tiny wide; do
        t="--model $out/$model.json --candidates -1 --seqs $mixed --forwards 3"
        twin asyncep-$model 2 $t -- --strategy asyncep
        twin dwdp-$model 2 $t -- --strategy dwdp
    done
    t="--model $out/tiny.json --candidates -1 --seqs $mixed --forwards 3"
    twin asyncep-moe 2 $t -- --strategy asyncep --wait moe
    twin asyncep-chunks 2 $t -- --strategy asyncep --gather-chunk 300001
    twin asyncep-nccl 2 $t -- --strategy asyncep --gather nccl
    twin dwdp-chunks 2 $t -- --strategy dwdp --gather-chunk 1000000
    for skew in hot:4 zipf:6; do
        twin "asyncep-${skew%:*}" 2 $t --skew $skew -- --strategy asyncep
        twin "dwdp-${skew%:*}" 2 $t --skew $skew -- --strategy dwdp
    done
    twin asyncep-keep 2 $t -- --strategy asyncep --gather-keep 3
    twin dwdp-keep 2 $t -- --strategy dwdp --gather-keep 3
    twin asyncep-resident 2 $t --resident-layers 4 -- --strategy asyncep
    twin dwdp-resident 2 $t --resident-layers 4 -- --strategy dwdp
    twin asyncep-empty-rank 2 --model "$out/tiny.json" --candidates -1 --seqs 300 --forwards 3 -- --strategy asyncep
    twin asyncep-nccl-empty-rank 2 --model "$out/tiny.json" --candidates -1 --seqs 300 --forwards 3 -- --strategy asyncep --gather nccl
fi
if has offload; then
    t="--model $out/tiny.json --candidates -1 --seqs $mixed --forwards 3"
    twin offload-ahead 1 $t -- --strategy offload
    for slots in 1 2 5 16; do twin offload-$slots-slots 1 $t -- --strategy offload --slots $slots; done
    twin offload-2-slots-zipf 1 $t --skew zipf:6 -- --strategy offload --slots 2
    twin offload-2-slots-one-token 1 --model "$out/tiny.json" --candidates -1 --seqs 1 --forwards 3 -- --strategy offload --slots 2
    twin offload-ahead-resident 1 $t --resident-layers 2 -- --strategy offload
    twin offload-hybrid 2 $t -- --strategy offload --ep 2
    twin offload-hybrid-window 2 $t -- --strategy offload --ep 2 --window 1
    twin offload-hybrid-chunks 2 $t -- --strategy offload --ep 2 --gather-chunk 400000
    twin offload-two-alone 2 $t -- --strategy offload --ep 1
fi
if has fp8; then # quantised weights travel with their scales; tp and ep round sums elsewhere, and an e4m3 step is 6 %
    near8 tp2-fp8 $mixed "${blocks[@]}" -- --strategy tp
    near8 tp2-fp8-wide $mixed "${wide8[@]}" -- --strategy tp
    near8 tp2-ep2-fp8 $mixed "${blocks[@]}" -- --attention tp --experts ep --tp 2 --ep 2
    near8 tp2-ep2-fp8-wide $mixed "${wide8[@]}" -- --attention tp --experts ep --tp 2 --ep 2
    near8 tp2-ep2-fp8-agrs $mixed "${blocks[@]}" -- --attention tp --experts ep --tp 2 --ep 2 --ep-exchange agrs
    near8 dp2-by-width-fp8 $halves "${blocks[@]}" -- --attention dp --experts tp --tp 1 --dp 2
    for x in a2a agrs a2a-k a2a-fp8; do near8 "ep2-fp8-$x" $halves "${blocks[@]}" -- --strategy ep --ep-exchange $x; done
    # what travels quantised is what would be quantised on arrival
    alike ep2-fp8-a2a-fp8-bits $halves "${blocks[@]}" -- --strategy ep -- --strategy ep --ep-exchange a2a-fp8
    near8 asap1-1-fp8 $halves "${blocks[@]}" -- --strategy asap
    near8 ep2-fp8-a2a-tbo $halves "${blocks[@]}" -- --strategy ep --overlap tbo
    near8 ep2-fp8-a2a-fp8-tbo $halves "${blocks[@]}" -- --strategy ep --ep-exchange a2a-fp8 --overlap tbo
    near8 ep2-fp8-parts $halves "${blocks[@]}" -- --strategy ep --overlap expert-groups --overlap-stages 2
    near8 ep2-fp8-hot $halves "${wide8[@]}" --skew hot:4 -- --strategy ep
    near8 ep2-fp8-empty-rank 300,5/ "${blocks[@]}" -- --strategy ep
    same pp2-fp8 $mixed "${blocks[@]}" -- --strategy pp --micro-batches 1 --no-kv-cache
    same pp2-fp8-micro-batches $mixed "${blocks[@]}" --forwards 4 -- --strategy pp --micro-batches 4
    near8 pp2-fp8-chunks $mixed "${blocks[@]}" --forwards 3 -- --strategy pp --micro-batches 1 --chunk-tokens 200
    t="--model $out/tiny.json --candidates -1 --seqs $mixed --forwards 3 --precision fp8"
    twin asyncep-fp8 2 $t -- --strategy asyncep
    twin asyncep-fp8-chunks 2 $t -- --strategy asyncep --gather-chunk 300001
    twin asyncep-fp8-nccl 2 $t -- --strategy asyncep --gather nccl
    twin dwdp-fp8 2 $t -- --strategy dwdp
    twin offload-fp8-ahead 1 $t -- --strategy offload
    twin offload-fp8-2-slots 1 $t -- --strategy offload --slots 2
    twin offload-fp8-hybrid 2 $t -- --strategy offload --ep 2
    refused fp8-heads-of-64 "each rank's width of q, k and v must be a multiple of 128" 2 --model "$out/tiny.json" --seqs 64 --precision fp8 --strategy tp
    # a checkpoint in the layout of Qwen's FP8 models, cut over ranks
    dir=$out/checkpoint-fp8
    $python "$here/tests/tools/random_checkpoint.py" "$out/blocks.json" "$dir" --fp8 || bad "random_checkpoint --fp8"
    t="--weights $dir --candidates -1 --precision fp8"
    near8 weights-tp2-fp8 $mixed $t -- --strategy tp
    near8 weights-tp2-ep2-fp8 $mixed $t -- --attention tp --experts ep --tp 2 --ep 2
    near8 weights-ep2-fp8 $halves $t -- --strategy ep
    same weights-pp2-fp8 $mixed $t -- --strategy pp --micro-batches 1 --no-kv-cache
    t="$t --seqs $mixed"
    twin weights-asyncep-fp8 2 $t -- --strategy asyncep
    twin weights-dwdp-fp8 2 $t -- --strategy dwdp
    twin weights-offload-2-slots-fp8 1 $t -- --strategy offload --slots 2
    twin weights-hybrid-fp8 2 $t -- --strategy offload --ep 2
fi
if has weights; then # a checkpoint's slices: as random weights, every layout reads the same tensors
    for form in "" --stacked; do
        dir=$out/checkpoint$form
        $python "$here/tests/tools/random_checkpoint.py" "$out/tiny.json" "$dir" $form || bad "random_checkpoint $form"
        t="--weights $dir --candidates -1"
        near "weights-tp2$form" $mixed $t -- --strategy tp
        near "weights-ep2$form" $halves $t -- --strategy ep
        near "weights-asap1-1$form" $halves $t -- --strategy asap
        same "weights-pp2$form" $mixed $t -- --strategy pp --micro-batches 1 --no-kv-cache
        t="$t --seqs $mixed"
        twin "weights-asyncep$form" 2 $t -- --strategy asyncep
        twin "weights-dwdp$form" 2 $t -- --strategy dwdp
        twin "weights-offload$form" 1 $t -- --strategy offload
        twin "weights-offload-2-slots$form" 1 $t -- --strategy offload --slots 2
        twin "weights-hybrid$form" 2 $t -- --strategy offload --ep 2
    done
fi
if has four; then
    gpus=4 quarters=1,37,512/129,64/64x2,700/8,255 both=1,37,512,129/64x3,700
    t="--model $out/tiny.json --candidates -1 --forwards 3"
    twin asyncep4 4 $t --seqs $quarters -- --strategy asyncep
    near tp4 $mixed "${tiny[@]}" -- --strategy tp
    near tp2-ep4 $both "${tiny[@]}" -- --attention tp --experts ep --tp 2 --dp 2 --ep 4
    near ep4-a2a $quarters "${tiny[@]}" -- --strategy ep
    near ep4-agrs $quarters "${tiny[@]}" -- --strategy ep --ep-exchange agrs
    near ep2-replicas $quarters "${tiny[@]}" -- --strategy ep --ep 2
    twin dwdp4 4 $t --seqs $quarters -- --strategy dwdp
    same pp4 $mixed "${tiny[@]}" -- --strategy pp --micro-batches 1 --no-kv-cache
    twin pp2-asyncep2 4:2 $t --seqs $both -- --pp 2 --dp 2 --ep 2 --attention dp --experts asyncep --micro-batches 1
    near pp2-tp2 $mixed "${tiny[@]}" -- --pp 2 --tp 2 --attention tp --experts tp --micro-batches 2
    twin offload-hybrid4 4 $t --seqs $quarters -- --strategy offload --ep 4
    near ep4-empty 300,5///40 "${tiny[@]}" -- --strategy ep
    twin asyncep4-empty 4 $t --seqs 300,5///40 -- --strategy asyncep
    twin asyncep4-turns 4 $t --seqs "1,37//64x2/8;/512/3/700;;5/5/5/2000" -- --strategy asyncep
    near ep4-tbo $quarters "${tiny[@]}" -- --strategy ep --overlap tbo
    near ep4-hot $quarters "${tiny[@]}" --skew hot:4 -- --strategy ep
    near ep4-wide $quarters "${wide[@]}" -- --strategy ep
    near ep4-a2a-k $quarters "${tiny[@]}" -- --strategy ep --ep-exchange a2a-k
    near ep4-parts $quarters "${tiny[@]}" -- --strategy ep --overlap expert-groups --overlap-stages 2
    near tp2-dp2-by-width $both "${tiny[@]}" -- --attention tp --experts tp --tp 2 --dp 2
    near tp4-wide $mixed "${wide[@]}" -- --strategy tp
    near pp4-micro-batches $mixed "${tiny[@]}" --forwards 4 -- --strategy pp --micro-batches 4
    near pp2-ep2 $both "${tiny[@]}" -- --pp 2 --dp 2 --ep 2 --attention dp --experts ep --micro-batches 2
    twin dwdp4-keep 4 $t --seqs $quarters -- --strategy dwdp --gather-keep 3
    twin asyncep4-keep 4 $t --seqs $quarters -- --strategy asyncep --gather-keep 9 --gather-chunk 300001
    twin asyncep4-one-stream 4 $t --seqs $quarters -- --strategy asyncep --gather-streams 1
    twin asyncep4-yield 4 $t --seqs $quarters -- --strategy asyncep --gather-order yield --gather-chunk 300001
    twin asyncep4-yield-turns 4 $t --seqs "1,37//64x2/8;/512/3/700;;5/5/5/2000" -- --strategy asyncep --gather-order yield
    twin dwdp4-yield 4 $t --seqs $quarters -- --strategy dwdp --gather-order yield --wait moe
    twin asyncep4-chunks 4 $t --seqs $quarters -- --strategy asyncep --gather-chunk 300001
    twin asyncep4-nccl 4 $t --seqs $quarters -- --strategy asyncep --gather nccl
    twin asyncep4-hot 4 $t --seqs $quarters --skew hot:4 -- --strategy asyncep --wait moe
    twin asyncep2-replicas 4 $t --seqs $quarters -- --strategy asyncep --ep 2
    twin dwdp4-chunks 4 $t --seqs $quarters --skew zipf:6 -- --strategy dwdp --gather-chunk 100001
    twin offload-hybrid4-window 4 $t --seqs 300,5///40 -- --strategy offload --ep 4 --window 1
    twin offload-hybrid2-replicas 4 $t --seqs $quarters -- --strategy offload --ep 2
    near8 tp2-ep4-fp8 $both "${blocks[@]}" -- --attention tp --experts ep --tp 2 --dp 2 --ep 4
    near8 ep4-fp8 $quarters "${blocks[@]}" -- --strategy ep --ep-exchange a2a-fp8
    twin asyncep4-fp8 4 $t --precision fp8 --seqs $quarters -- --strategy asyncep
    near ep4-zipf-empty 300,5///40 "${wide[@]}" --skew zipf:6 -- --strategy ep --ep-exchange agrs
fi
[ -s "$checks" ] || { echo "no checks"; exit 1; }
# A cell that fails says so and the next one runs. Where the process ends before its list does, the cell it was at is left out.
cp "$list" "$list.left"
for try in 1 2 3 4 5; do
    room=$((limit - SECONDS))
    [ $room -lt 5 ] && break
    timeout -k 10 $room "$engine" run --no-predict --warmup 0.01 --fit-rounds 0 --no-spans --timeout 15 --json --cells "$list.left" --results "$results" \
        --limit $((room - 4)) >"$log.$try" 2>&1
    code=$?
    cat "$log.$try" >>"$log"
    grep -q "left for want of time" "$log.$try" && break
    echo "the process ended with $code: $(tail -n 1 "$log.$try" | cut -c 1-200)"
    while read -r name _; do
        [ -s "$results/$name.json" ] || grep -q "^$name  *FAILED" "$log" || break
    done <"$list.left"
    echo "$name FAILED: the process ended here" >>"$log"
    grep -v "^$name |" "$list" >"$list.left"
done
# All pairs at once: a process each.
while read -r name ref limits; do
    # shellcheck disable=SC2086
    { $python "$here/tests/tools/compare_logits.py" "$out/$ref.bits" "$out/$name.bits" $limits >"$out/$name.said" 2>&1; echo $? >"$out/$name.code"; } &
done <"$checks"
wait
while read -r name ref limits; do
    if [ ! -s "$results/$ref.json" ]; then bad "$name: no reference: $(grep "^$ref " "$log" | cut -c 1-300)"; continue; fi
    if [ ! -s "$results/$name.json" ]; then bad "$name: $(grep "^$name " "$log" || echo "did not run")"; continue; fi
    if [ "$(cat "$out/$name.code")" = 0 ]; then ok; else bad "$name"; fi
    printf '%-26s %s (%s)\n' "$name" "$(tail -n 1 "$out/$name.said")" "$(awk -v n="$name" '$1 == n { print $2 " s" }' "$log")"
done <"$checks"
rm -f "$out"/*.bits "$out"/*.said "$out"/*.code
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
