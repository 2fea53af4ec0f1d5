#!/usr/bin/env bash
# One part of the validation set on this machine's GPU(s): OUT/PART.db with every run, its timeline and routing, OUT/NAME.json each.
#   experiments/validate/run.sh ENGINE PART OUT [SECONDS]       stops before SECONDS are over; cells that are there already are left out
# ANCHORS=FILE: anchor rows of this machine (forerun calibrate --anchors), stored with the runs.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cells.sh"
engine=$1 part=$2 out=$3 limit=${4:-150} start=$SECONDS
mkdir -p "$out"
done_=0 failed=0 left=0
while IFS=$'\t' read -r name flags; do
    [ -s "$out/$name.json" ] && continue
    room=$((limit - SECONDS + start))
    if [ $room -lt 8 ]; then
        left=$((left + 1))
        continue
    fi
    [[ " $flags " == *" --strategy "* || " $flags " == *" --attention "* ]] || flags="--strategy dp $flags"
    warmup=1.5
    [[ " $flags " == *" --regime burst"* ]] && warmup=0
    # hundreds of forwards of 48 layers: their spans would be all there is in the store
    [[ " $flags " == *"poisson"* ]] && flags="$flags --no-spans"
    [ -n "${ANCHORS:-}" ] && flags="$flags --anchors $ANCHORS"
    begun=$SECONDS
    # shellcheck disable=SC2086
    if timeout -k 10 $((room < 40 ? room : 40)) "$engine" run --machine "$(machine "$part")" $flags --warmup $warmup --timeout 20 --no-predict \
        --json --db "$out/$part.db" >"$out/$name.part" 2>"$out/$name.err"; then
        mv "$out/$name.part" "$out/$name.json"
        rm -f "$out/$name.err"
        done_=$((done_ + 1))
        forward=$(grep -o '"forward_s": *[0-9.e-]*' "$out/$name.json" | head -n 1 | grep -o '[0-9.e-]*$')
        printf '%-24s %s s a forward   (%d s)\n' "$name" "$forward" $((SECONDS - begun))
    else
        failed=$((failed + 1))
        rm -f "$out/$name.part"
        printf '%-24s FAILED: %s\n' "$name" "$(tail -n 1 "$out/$name.err" | cut -c 1-200)"
    fi
done < <(cells "$part")
echo "part $part: $done_ run, $failed failed, $left left for want of time, $((SECONDS - start)) s"
