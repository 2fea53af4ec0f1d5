#!/usr/bin/env bash
# What the simulator says of the set, as it stands: one line of JSON a cell and part, sorted. Committed before a part is
# first run: predictions-*.jsonl.    experiments/validate/predict.sh [FORERUN] [PART...] >predictions.jsonl
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cells.sh"
forerun=${1:-build/forerun}
shift
failed=0
for part in ${*:-a b h two off}; do
    while IFS=$'\t' read -r name flags; do
        [[ " $flags " == *" --strategy "* || " $flags " == *" --attention "* ]] || flags="--strategy dp $flags"
        timed="--timed --warmup 1.5" # cells run with their timelines and a warm-up, but for replays and bursts (run.sh)
        [[ " $flags " == *"--regime burst"* ]] && timed=--timed
        [[ " $flags " == *"poisson"* ]] && timed=
        [[ $(machine "$part") != *x1 ]] && timed="$timed --unlike" # cards that nobody knows are not alike
        # shellcheck disable=SC2086
        if json=$("$forerun" simulate --machine "$(machine "$part")" $flags $timed --json 2>/tmp/predict.$$); then
            sqlite3 :memory: "SELECT json_object('name','$name','part','$part','forward_s',json_extract(j,'\$.forward_s'),
                'low_s',json_extract(j,'\$.interval.forward_low_s'),'high_s',json_extract(j,'\$.interval.forward_high_s'),
                'tokens_per_s',json_extract(j,'\$.tokens_per_s'),'ttft_mean_s',json_extract(j,'\$.ttft_s.mean'),
                'ttft_p99_s',json_extract(j,'\$.ttft_s.p99'),'clock_mhz',json_extract(j,'\$.clock_mhz'),
                'cost_hash',json_extract(j,'\$.cost_hash')) FROM (SELECT '${json//\'/\'\'}' AS j)"
        else
            echo "$name ($part): $(cat /tmp/predict.$$)" >&2
            failed=1
        fi
    done < <(cells "$part")
done
rm -f /tmp/predict.$$
exit $failed
