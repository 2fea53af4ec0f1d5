#!/usr/bin/env bash
# What travels between GPUs: the exchange's kernels (on one GPU too: ranks share it), then, with two or more, NCCL's
# collectives, weights by copy engines and a peer that does not come, all with a library preloaded that ends the program
# where anything makes a multicast object.   tests/gpu/test_transport.sh [FOLDER OF THE TEST PROGRAMS]
set -u
bin=${1:-build/gpu}
. "$(dirname "$0")/lib.sh"
timeout 100 "$bin/test_exchange" check || exit 1
[ "$(nvidia-smi -L | wc -l)" -ge 2 ] || { echo "one GPU: no test of collectives"; exit 0; }
log=$(mktemp)
LD_PRELOAD=$(realpath "$bin/no_multicast.so") timeout 100 "$bin/test_transport" ce check fault 2>"$log" || { cat "$log"; exit 1; }
cat "$log"
timeout 60 "$bin/test_transport" storm || exit 1
grep -q "looked up [1-9]" "$log" || { echo "FAILED: no_multicast.so was passed by"; exit 1; }
rm -f "$log"
