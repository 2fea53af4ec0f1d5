#!/usr/bin/env bash
# make gpu-test: every part that there are GPUs for, one after the other, and a closing line over all of them. A part
# that does not come to its own closing line, or fails without counting a failure, is one.
#   tests/gpu/run.sh [BUILD [PART...]]        logs in BUILD/gpu/logs
set -u
build=${1:-build} all=0 wrong=0
shift $(($# > 0))
asked=${*:-.}
here=$(dirname "$0")
. "$here/lib.sh"
mkdir -p "$build/gpu/logs"
gpus=$(gpus_here)
part() { # NAME GPUS SECONDS COMMAND...
    local name=$1 need=$2 limit=$3 log=$build/gpu/logs/$1.txt began=$SECONDS code line p=0 f=0; shift 3
    case " $asked " in " . " | *" $name "*) ;; *) return ;; esac
    if [ "$gpus" -lt "$need" ]; then echo "== $name: left out, needs $need GPUs of $gpus"; return; fi
    echo "== $name"
    timeout -k 30 "$limit" "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$log" | tail -n 1)
    [ -z "$line" ] || read -r p _ f _ <<<"$line"
    if [ -z "$line" ]; then echo "FAILED: $name did not run to its end (exit $code)"; f=1
    elif [ "$f" -eq 0 ] && { [ "$code" -ne 0 ] || [ "$p" -eq 0 ]; }; then echo "FAILED: $name: exit $code"; f=1; fi
    echo "-- $name: $p passed, $f failed, $((SECONDS - began)) s"
    all=$((all + p)) wrong=$((wrong + f))
}
part kernels 1 300 "$build/gpu/test_kernels"
part fp8 1 300 "$build/gpu/test_fp8"
part copies 1 60 "$build/gpu/test_copies"
part carry 1 60 "$build/gpu/test_carry"
part engine 1 1800 bash "$here/test_engine.sh" "$build/forerun-cuda" "$build/gpu/engine"
part transport 2 400 bash "$here/test_transport.sh" "$build/gpu"
part ranks 2 700 bash "$here/test_ranks.sh" "$build/forerun-cuda" "$build/gpu/ranks"
part faults 2 700 bash "$here/test_faults.sh" "$build/forerun-cuda" "$build/gpu/faults"
part ranks4 4 700 env PARTS="four asap4" bash "$here/test_ranks.sh" "$build/forerun-cuda" "$build/gpu/ranks4"
part faults4 4 700 env GPUS=4 PARTS="faults traces processes" bash "$here/test_faults.sh" "$build/forerun-cuda" "$build/gpu/faults4"
echo "$all passed, $wrong failed"
[ "$wrong" -eq 0 ] && [ "$all" -gt 0 ]
