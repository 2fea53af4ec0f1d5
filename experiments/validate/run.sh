#!/usr/bin/env bash
# One part of the validation set on this machine's GPU(s), in one process: OUT/PART.db with every run, its timeline and routing,
# OUT/NAME.json each.
#   experiments/validate/run.sh ENGINE PART OUT [SECONDS]       stops before SECONDS are over; cells that are there already are left out
# ANCHORS=FILE: anchor rows of this machine (forerun calibrate --anchors), stored with the runs.
# ONLY=REGEX: cells whose names match, all of REGEX. WARMUP=S: back to back before the clock of sustained runs, 1.5.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cells.sh"
engine=$1 part=$2 out=$3 limit=${4:-150} start=$SECONDS
mkdir -p "$out"
# NAME | FLAGS, with what a line of the set leaves to its part
asked() {
    local name flags warmup
    while IFS=$'\t' read -r name flags; do
        [[ $name =~ ^(${ONLY:-.*})$ ]] || continue
        [[ " $flags " == *" --strategy "* || " $flags " == *" --attention "* ]] || flags="--strategy dp $flags"
        warmup=${WARMUP:-1.5}
        [[ " $flags " == *" --regime burst"* ]] && warmup=0
        # hundreds of forwards of 48 layers: their spans would be all there is in the store
        [[ " $flags " == *"poisson"* ]] && flags="$flags --no-spans"
        echo "$name | --warmup $warmup $flags"
    done < <(cells "$part")
}
asked >"$out/cells-$part.txt"
anchors=
[ -n "${ANCHORS:-}" ] && anchors="--anchors $ANCHORS"
# a cell that hangs ends by its own --timeout; a device that does not answer ends the process: once more for the rest
for try in 1 2; do
    room=$((limit - SECONDS + start))
    [ $room -lt 10 ] && break
    # shellcheck disable=SC2086
    timeout -k 10 $((room + 20)) "$engine" run --machine "$(machine "$part")" --timeout 20 --no-predict $anchors \
        --db "$out/$part.db" --cells "$out/cells-$part.txt" --results "$out" --limit $((room - 8)) && break
done
for name in $(cut -d ' ' -f 1 "$out/cells-$part.txt"); do
    [ -s "$out/$name.json" ] && printf '%-24s %s\n' "$name" "$(grep -o '"forward_s": *[0-9.e-]*' "$out/$name.json" | head -n 1)" || echo "$name was not run"
done
echo "part $part: $((SECONDS - start)) s"
