#!/usr/bin/env bash
# make gpu-test: every part that there are GPUs for, side by side where each has GPUs of its own, and a closing line over
# all of them. A part that does not come to its own closing line, or fails without counting a failure, is one.
#   tests/gpu/run.sh [BUILD [PART...]]        logs in BUILD/gpu/logs; the parts are named below
#   LIMIT=SECONDS: of all parts together; those that have not begun by then are left out, which the closing line says
set -u
build=${1:-build} all=0 wrong=0 left_out=0
shift $(($# > 0))
asked=${*:-.}
here=$(dirname "$0")
. "$here/lib.sh"
mkdir -p "$build/gpu/logs"
limit=${LIMIT:-7200}

# GPUs that no part has; by their names in CUDA_VISIBLE_DEVICES
free=()
if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then IFS=, read -r -a free <<<"$CUDA_VISIBLE_DEVICES"
else for ((i = 0; i < $(gpus_here); i++)); do free+=("$i"); done; fi
gpus=${#free[@]}
declare -A name_of=() gpus_of=() began_of=()
trap 'kill "${!name_of[@]}" 2>/dev/null; exit 1' TERM INT

# Waits for one part to end, and counts what it says.
take_one() {
    local pid code name line p=0 f=0
    wait -n -p pid "${!name_of[@]}"
    code=$? name=${name_of[$pid]}
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$build/gpu/logs/$name.txt" | tail -n 1)
    [ -z "$line" ] || read -r p _ f _ <<<"$line"
    echo "== $name"
    cat "$build/gpu/logs/$name.txt"
    if [ -z "$line" ]; then echo "FAILED: $name did not run to its end (exit $code)"; f=1
    elif [ "$f" -eq 0 ] && { [ "$code" -ne 0 ] || [ "$p" -eq 0 ]; }; then echo "FAILED: $name: exit $code"; f=1; fi
    echo "-- $name: $p passed, $f failed, $((SECONDS - began_of[$pid])) s"
    all=$((all + p)) wrong=$((wrong + f))
    # shellcheck disable=SC2206
    free+=(${gpus_of[$pid]})
    unset "name_of[$pid]"
}
# GPUS: so many of its own; `2+`: all of them, two at least: a part that takes times shares the host with none. SECONDS:
# its limit, in which it stops by itself where it can (LIMIT).
part() { # NAME GPUS SECONDS COMMAND...
    local name=$1 need=${2%+} takes=$2 own=$3 mine left; shift 3
    case " $asked " in " . " | *" $name "*) ;; *) return ;; esac
    if [ "$gpus" -lt "$need" ]; then echo "== $name: left out, needs $need GPUs of $gpus"; return; fi
    [ "$takes" = "$need" ] || need=$gpus
    while [ ${#free[@]} -lt "$need" ]; do take_one; done
    left=$((limit - SECONDS))
    if [ $left -lt 5 ]; then echo "== $name: left out, no time"; left_out=$((left_out + 1)); return; fi
    [ $left -lt "$own" ] && own=$left
    mine=("${free[@]:0:need}") free=("${free[@]:need}")
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${mine[*]}") LIMIT=$((own > 20 ? own - 3 : own)) timeout -k 30 "$own" "$@" \
        >"$build/gpu/logs/$name.txt" 2>&1 </dev/null &
    name_of[$!]=$name gpus_of[$!]=${mine[*]} began_of[$!]=$SECONDS
}
part kernels 1 300 "$build/gpu/test_kernels"
part fp8 1 300 "$build/gpu/test_fp8"
part copies 1 60 "$build/gpu/test_copies"
part carry 1 60 "$build/gpu/test_carry"
part failures 1 300 env PARTS="doctor failures keep load" bash "$here/test_engine.sh" "$build/forerun-cuda" "$build/gpu/failures"
part logits 1 420 env PARTS=logits bash "$here/test_engine.sh" "$build/forerun-cuda" "$build/gpu/logits"
part transport 2 400 bash "$here/test_transport.sh" "$build/gpu"
part ranks 2 700 bash "$here/test_ranks.sh" "$build/forerun-cuda" "$build/gpu/ranks"
part ranks4 4 700 env PARTS="four asap4" bash "$here/test_ranks.sh" "$build/forerun-cuda" "$build/gpu/ranks4"
part speed 1+ 900 env PARTS="speed depth lengths idle trace comparators" \
    bash "$here/test_engine.sh" "$build/forerun-cuda" "$build/gpu/speed"
part faults 2+ 700 bash "$here/test_faults.sh" "$build/forerun-cuda" "$build/gpu/faults"
part faults4 4+ 700 env GPUS=4 PARTS="faults traces processes" bash "$here/test_faults.sh" "$build/forerun-cuda" "$build/gpu/faults4"
[ -z "$(command -v mpirun)" ] || part mpi 2 200 env PARTS=mpi ENGINE_MPI="$build/forerun-cuda-mpi" bash "$here/test_faults.sh" "$build/forerun-cuda" "$build/gpu/mpi"
while [ ${#name_of[@]} -gt 0 ]; do take_one; done
[ $left_out -eq 0 ] || echo "$left_out parts were left out for want of time"
echo "$all passed, $wrong failed"
[ "$wrong" -eq 0 ] && [ "$all" -gt 0 ]
