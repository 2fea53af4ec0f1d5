#!/usr/bin/env bash
# What travels between GPUs (two at least): the exchange's kernels, NCCL's collectives, weights by copy engines and a peer
# that does not come, all with a library preloaded that ends the program where anything makes a multicast object, and
# launches beside a rank that gives up.             tests/gpu/test_transport.sh [FOLDER OF THE TEST PROGRAMS]
set -u
bin=${1:-build/gpu}
. "$(dirname "$0")/lib.sh"
[ "$(gpus_here)" -ge 2 ] || { echo "FAILED: needs two GPUs, $(gpus_here) visible"; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2; shift 2
    if timeout "$limit" "$@" >"$log" 2>&1; then ok; else bad "$name: exit $?"; fi
    cat "$log"
}
part exchange 100 "$bin/test_exchange" check
part collectives 100 env LD_PRELOAD="$(realpath "$bin/no_multicast.so")" "$bin/test_transport" ce check fault
if grep -q "looked up [1-9]" "$log"; then ok; else bad "no_multicast.so was passed by"; fi
part storm 60 "$bin/test_transport" storm
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
