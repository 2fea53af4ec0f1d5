#!/usr/bin/env bash
# The set for 4 or 8 GPUs on such a machine, into OUT: anchors and what all GPUs do at once, then all cells in one process
# (OUT/NAME.json each, OUT/PART.db with timelines and routing; cells that are there already are left out).
#   experiments/large/run.sh ENGINE four|eight OUT [SECONDS]
# ONLY="NAME...": these cells, in this order; CALIBRATE=no: no anchors, no rows; WARMUP=S: back to back before the clock, 1;
# EXTRA="NAME | FLAGS" (lines): more cells, of options that only a live run has; ROUNDS=N: corrections of the routing before, 4; TIMEOUT=S: of a cell that hangs, 20; DB="NAME...": only these cells' timelines are kept (a cell has some 1 MB)
set -u
here=$(cd "$(dirname "$0")" && pwd) engine=$1 part=$2 out=$3 limit=${4:-500}
. "$here/../validate/cells.sh"
mkdir -p "$out"
if [ "${CALIBRATE:-yes}" = yes ]; then
    gpus=$(nvidia-smi -L | wc -l)
    timeout 75 "$engine" calibrate --anchors --device "$(seq -s, 0 $((gpus - 1)))" --limit 60 --out "$out/anchors.txt" || echo "no anchors" >&2
    timeout 120 "$engine" calibrate --quick --device "$(seq -s, 0 $((gpus - 1)))" --limit 90 --out "$out/ranks.txt" || echo "no collectives, no pulls" >&2
fi
anchors=
[ -s "$out/anchors.txt" ] && anchors="--anchors $out/anchors.txt"
asked() { # of the set, those that are asked for
    local all name
    all=$(SET=$here/set.txt cells "$part" | sed 's/\t/ | /')${EXTRA:+$'\n'$EXTRA}
    if [ -n "${DB+given}" ]; then
        for name in $DB; do all=$(sed "s,^$name | .*,& --db $out/$part.db," <<<"$all"); done
    else
        all=$(sed "s,\$, --db $out/$part.db," <<<"$all")
    fi
    [ -n "${ONLY:-}" ] || { echo "$all"; return; }
    for name in $ONLY; do grep "^$name | " <<<"$all" || echo "no cell $name in part $part" >&2; done
}
asked >"$out/cells.txt"
# a cell that hangs ends by its own --timeout; the rest of the list then gets a process of its own
room=$((limit - SECONDS))
# shellcheck disable=SC2086
timeout -k 10 $((room + 25)) "$engine" run --machine "$(machine "$part")" --warmup "${WARMUP:-1}" --timeout "${TIMEOUT:-20}" --no-predict $anchors \
    --fit-rounds "${ROUNDS:-4}" --cells "$out/cells.txt" --results "$out" --limit $((room - 8))
