#!/usr/bin/env bash
# The engine on two GPUs when ranks go wrong or are unlike: every fault ends the whole run within the timeout with one
# message and keeps what was done; uneven, empty and slow ranks are waited for, and the accounts say who waited.
#   tests/gpu/test_faults.sh [ENGINE [OUT]]        PARTS="faults uneven traces processes" and, where there is mpirun, mpi;
#   JOBS=N processes at once (NCCL's of several take turns on a GPU and are slow to start then: 1, the default, or 2);
#   ONLY="@(stall-*|procs-tp)"; LIMIT=S: no run of uneven or traces is begun later; GPUS=4 (not for uneven)
# Faults are injected on the host's side (--inject); small random models, so that all of it takes some two minutes.
set -u
shopt -s extglob
engine=${1:-build/forerun-cuda} out=${2:-build/gpu/faults}
parts=${PARTS:-faults uneven traces processes} gpus=${GPUS:-2} only=${ONLY:-*}
mkdir -p "$out"
. "$(dirname "$0")/lib.sh"
model="--model qwen3-30b-a3b --layers 4 --skew uniform --fit-rounds 0 --no-predict --warmup 0.05 --machine h200x$gpus --gpus $gpus"
layouts="dp tp ep pp asyncep dwdp asap"

# shellcheck disable=SC2254
asked() { case "$1" in $only) return 0 ;; *) return 1 ;; esac; }
room_for_one() { while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-1}" ]; do sleep 0.05; done; }
# NAME SECONDS TEXT flags...: exit 1 within SECONDS (the timeout, 3 s, and 5 s of start where it counts from then on), one
# message with TEXT. `broke` looks at all of them; JOBS of them run at once.
faulty=()
breaks() {
    asked "$1" || return
    faulty+=("$1|$2|$3")
    room_for_one
    fault "$1" "${@:4}" &
}
fault() { # NAME flags...: leaves exit code, milliseconds, and those of them after the message
    local name=$1 began code said; shift
    rm -f "$out/$name.said"
    began=$(date +%s%N)
    # shellcheck disable=SC2086
    timeout 60 $engine run $model --tokens 2K --seq 512 --forwards 8 "$@" 2>&1 >"$out/$name.out" </dev/null | tee "$out/$name.err" |
        { grep -m 1 -q "forerun run:" && date +%s%N >"$out/$name.said"; cat >/dev/null; }
    code=${PIPESTATUS[0]} said=$(cat "$out/$name.said" 2>/dev/null || echo 0)
    echo "$code" $((($(date +%s%N) - began) / 1000000)) $((($(date +%s%N) - said) / 1000000)) >"$out/$name.code"
}
broke() {
    local f name limit text code took after lines
    wait
    for f in "${faulty[@]}"; do
        IFS='|' read -r name limit text <<<"$f"
        read -r code took after <"$out/$name.code"
        lines=$(grep -c "forerun run:" "$out/$name.err")
        if [ "$code" -eq 1 ] && [ "$lines" -eq 1 ] && grep -q "$text" "$out/$name.err" && [ "$took" -lt $((limit * 1000)) ]; then ok
        else bad "$name: exit $code, $lines messages: $(tail -n 2 "$out/$name.err" | cut -c 1-200)"; fi
        printf '%-18s %6d ms, %4s after the message: %s\n' "$name" "$took" "$after" "$(grep "forerun run:" "$out/$name.err" | head -n 1 | cut -c 1-150)"
    done
    faulty=()
}
lines='' names=()
cell() { # NAME flags...: one of those that `play` runs in one process
    asked "$1" || return
    lines+="$1 | ${*:2}"$'\n'
    names+=("$1")
    rm -f "$out/$1.json"
}
play() {
    [ ${#names[@]} -gt 0 ] || return
    printf '%s' "$lines" >"$out/cells.txt"
    # shellcheck disable=SC2086
    timeout 240 $engine run $model --cells "$out/cells.txt" --results "$out" --limit "${LIMIT:-200}" >"$out/cells.out" 2>"$out/cells.err" || tail -n 2 "$out/cells.err" | cut -c 1-200
    report "${names[@]}"
    lines='' names=()
}
runs() { # NAME flags...: processes of its own; `ran` looks at all of them
    local name=$1; shift
    asked "$name" || return
    names+=("$name")
    room_for_one
    # shellcheck disable=SC2086
    { timeout 60 $engine run $model --json "$@" >"$out/$name.json" 2>"$out/$name.err" || tail -n 1 "$out/$name.err" | cut -c 1-200; } &
}
ran() {
    wait
    [ ${#names[@]} -eq 0 ] || report "${names[@]}"
    names=()
}
report() { # NAMES...: there is a result, and the parts of every rank add up; prints who waited
    local line
    while read -r line; do
        case "$line" in *"!") bad "${line% !}" ;; *) ok; echo "$line" ;; esac
    done < <($python - "$out" "$@" <<'PY'
import json, sys
ms = lambda k, x: f"{k[x] * 1e3:8.3f}"
parts = lambda k: k["compute_s"] + k["exposed_comm_s"] + k["wait_s"] + k["bubble_s"] + k["idle_s"]
for name in sys.argv[2:]:
    try: r = json.load(open(f"{sys.argv[1]}/{name}.json"))
    except (OSError, ValueError):
        print(name, "has no result !")
        continue
    fail = []
    for k in r["ranks"]:
        if abs(parts(k) - k["elapsed_s"]) > 2e-9: fail.append(f"rank {k['rank']}: parts {parts(k)} of {k['elapsed_s']}")
        if k["clock_error_s"] is None or k["clock_error_s"] > 10e-6: fail.append(f"rank {k['rank']}: clock off by {k['clock_error_s']}")
    whole = r["elapsed_s"] if r["trace"] else r["forward_s"]
    if abs(parts(r) - whole) > 2e-9: fail.append(f"{whole} s, parts {parts(r)}")
    print(f"{name:<20} forward {r['forward_s']*1e3:8.3f} ms; ranks: " + " | ".join(
        f"compute{ms(k,'compute_s')} exposed{ms(k,'exposed_comm_s')} wait{ms(k,'wait_s')} bubble{ms(k,'bubble_s')} idle{ms(k,'idle_s')}" for k in r["ranks"]),
        "; ".join(fail) + (" !" if fail else ""))
PY
    )
}
value() { $python -c "import json,sys; r=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))" "$out/$1.json" "$2"; }
check() { # NAME EXPRESSION over the result r
    asked "$1" || return
    if [ "$(value "$1" "$2")" = True ]; then ok; else bad "$1: $2"; fi
}

bits() { # NAME OTHER: the same logits, bit for bit
    local hash
    asked "$1" && asked "$2" || return
    hash=$(value "$1" "r['logits_hash']")
    if [ -n "$hash" ] && [ "$hash" = "$(value "$2" "r['logits_hash']")" ]; then ok; else bad "$1: other logits than $2"; fi
}

if has faults; then
    for s in $layouts; do
        breaks "fail-$s" 13 "rank 1: forward 3 fails" --strategy "$s" --inject fail:1:3 --timeout 10
    done
    for s in dp tp pp asyncep; do breaks "stall-$s" 11 "rank 0 has not issued" --strategy "$s" --inject stall:0:3 --timeout 3; done
    breaks stall-asap 11 "rank 1 has not issued" --strategy asap --inject stall:1:3 --timeout 3 # rank 0 waits for it
    # the device's own wait for a peer's tokens ends after 2 s
    breaks stall-ep 11 "rank 0, which did not come" --strategy ep --inject stall:0:3 --timeout 3
    for s in dp tp ep asyncep; do breaks "oom-$s" 13 "rank 1: out of GPU memory" --strategy $s --inject oom:1 --timeout 10; done
    # what was done before the fault is stored, and marked
    rm -f "$out/part.db"
    breaks part 13 "forward 5 fails" --strategy dp --inject fail:0:5 --timeout 10 --db "$out/part.db"
    broke
    if asked oom-full; then # GPU 1 is full of somebody else's weights
        $engine run --no-predict --machine h200x1 --strategy dp --device 1 --model qwen3-235b-a22b --layers 27 --tokens 1K --seq 1K --forwards 1 --warmup 30 \
            >"$out/holder" 2>&1 &
        sleep 5
        faulty+=("oom-full|13|rank 1.* are free")
        model=${model/--layers 4/} fault oom-full --strategy asyncep --timeout 10
        kill %% && broke
    fi
    if asked cells-go-on; then # a cell after which its process can't go on takes no others along
        printf '%s\n' "broken | --strategy tp --inject fail:1:1" "after | --strategy tp" >"$out/go-on.txt"
        rm -f "$out/broken.json" "$out/after.json"
        # shellcheck disable=SC2086
        timeout 60 $engine run $model --tokens 2K --seq 512 --forwards 3 --timeout 10 --cells "$out/go-on.txt" --results "$out" >"$out/go-on.out" 2>&1
        if [ $? -eq 1 ] && grep -q "^broken  *FAILED: rank 1: forward 1 fails" "$out/go-on.out" && [ -s "$out/after.json" ]; then ok; else bad "cells-go-on: $(tail -n 3 "$out/go-on.out")"; fi
        printf '%-18s %s\n' cells-go-on "$(tr '\n' ';' <"$out/go-on.out" | cut -c 1-150)"
    fi
    if ! asked part; then :
    elif grep -q "forwards until then are stored" "$out/part.err" && $engine trace "$out/part.db" -o "$out/part.json" 2>>"$out/part.err"; then ok; else bad "part: nothing stored"; fi
fi
if has uneven; then
    few="--tokens 2K --seq 512 --forwards 6"
    # shellcheck disable=SC2086
    for s in ep tp dp asyncep dwdp asap; do cell "slow-$s" --strategy "$s" $few --inject slow:1:20; done
    # shellcheck disable=SC2086
    cell slow-pp --strategy pp $few --inject slow:0:20 # the second stage waits for the first
    for s in ep dp asyncep dwdp asap; do
        cell "turns-$s" --strategy "$s" --seqs "512x4/;/64x20;1/2048" --forwards 6
        cell "empty-$s" --strategy "$s" --seqs "700/" --forwards 4
        cell "uneven-$s" --strategy "$s" --seqs "1,37,512/2000,300" --forwards 6
    done
    cell turns-tp --strategy tp --seqs "512x4;1;37,99" --forwards 6
    cell turns-pp --strategy pp --micro-batches 2 --seqs "512x4;1;37,99" --forwards 6
    # shellcheck disable=SC2086
    for s in $layouts; do cell "even-$s" --strategy "$s" $few; done
    play
    for s in ep tp; do check "slow-$s" "r['ranks'][0]['wait_s'] > 0.05 > r['ranks'][1]['wait_s']"; done
    check slow-asap "r['ranks'][0]['wait_s'] > 0.05" # what a first-ready lane waits for its own host counts as wait too
    check slow-pp "r['ranks'][1]['bubble_s'] + r['ranks'][1]['wait_s'] > 0.05"
    for s in dp asyncep dwdp; do # ranks that do not meet do not wait
        check "slow-$s" "r['ranks'][0]['wait_s'] < 0.005 and r['ranks'][0]['elapsed_s'] < 0.6 * r['ranks'][1]['elapsed_s']"
    done
    # who is late changes no answer, and where weights come to the tokens uneven batches give dp's bits
    for s in $layouts; do bits "slow-$s" "even-$s"; done
    for s in asyncep dwdp; do for x in turns empty uneven; do bits "$x-$s" "$x-dp"; done; done
fi
if has traces; then # requests as they arrive, over the queues of all attention groups
    for s in $layouts; do cell "trace-$s" --strategy "$s" --warmup 0.2 --trace "poisson:rate=60,len=uniform(100,1000)" --duration 1; done
    cell trace-siblings --strategy dp --route prefix --trace "batch:count=24,len=2K,prefix=1K,groups=4"
    play
    for s in $layouts; do check "trace-$s" "r['requests'] > 30 and r['tokens'] > 10000 and r['ttft_s']['p99'] < 1"; done
    check trace-siblings "r['requests'] == 24 and r['cached_tokens'] > 0"
fi
# A process per rank gives the bits that threads give: the layouts of one GPU's bits against dp, the others against
# themselves. `mpi` does the same under mpirun with ENGINE_MPI (make engine-mpi).
own="tp|ep|ep --ep-exchange agrs|asap"
one="dp|pp|asyncep|dwdp|offload --ep $gpus|asyncep --gather nccl|asyncep --gather nccl-ce"
few="--tokens 2K --seq 512 --forwards 3"
plain() { echo "$1" | tr -d ' -'; }
over() { # KIND LAYOUTS: of all these, as KIND of ranks
    local kind=$1 list=$2 s; shift 2
    while [ -n "$list" ]; do
        s=${list%%|*}; list=${list#"$s"}; list=${list#|}
        # shellcheck disable=SC2086
        if [ "$kind" = procs ]; then runs "procs-$(plain "$s")" --strategy $s $few --procs
        elif [ "$kind" = mpi ]; then by_mpi "mpi-$(plain "$s")" --strategy $s $few
        else cell "threads-$(plain "$s")" --strategy $s $few; fi
    done
    if [ "$kind" = threads ]; then play; else ran; fi
}
by_mpi() { # NAME flags...
    local threads=$engine
    engine="mpirun --allow-run-as-root --oversubscribe -n $gpus ${ENGINE_MPI:-build/forerun-cuda-mpi}"
    runs "$@"
    engine=$threads
}
same() { # KIND LAYOUTS REFERENCE: a layout, or nothing for the same one
    local kind=$1 list=$2 s
    while [ -n "$list" ]; do
        s=${list%%|*}; list=${list#"$s"}; list=${list#|}
        bits "$kind-$(plain "$s")" "threads-$(plain "${3:-$s}")"
    done
}
if has processes || has mpi; then over threads "dp|$own"; fi
if has processes; then
    over procs "$one|$own"
    same procs "$one" dp
    same procs "$own" ""
    breaks procs-fail 13 "rank 1: forward 3 fails" --strategy tp --procs --inject fail:1:3 --timeout 10
    breaks procs-fail-ep 13 "rank 1: forward 3 fails" --strategy ep --procs --inject fail:1:3 --timeout 10
    breaks procs-fail-asyncep 13 "rank 0: forward 3 fails" --strategy asyncep --procs --inject fail:0:3 --timeout 10
    breaks procs-oom 13 "rank 1: out of GPU memory" --strategy dp --procs --inject oom:1 --timeout 10
    breaks procs-stall 11 "rank 1 has not issued" --strategy dp --procs --inject stall:1:3 --timeout 3
    broke
fi
if has mpi; then
    over mpi "asyncep|tp|ep"
    same mpi "asyncep" dp
    same mpi "tp|ep" ""
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
