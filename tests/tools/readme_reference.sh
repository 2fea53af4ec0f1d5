#!/usr/bin/env bash
# Puts the program's own reference of options (forerun --reference) between README.md's markers; with --check only says whether it is there already.
set -eu
forerun=${FORERUN:-build/forerun}
new=$(mktemp)
trap 'rm -f "$new"' EXIT
"$forerun" --reference >"$new.ref"
awk -v ref="$new.ref" '
    /<!-- reference begin -->/ { print; print ""; while ((getline line < ref) > 0) print line; print ""; skip = 1 }
    /<!-- reference end -->/ { skip = 0 }
    !skip && !/<!-- reference begin -->/ { print }' README.md >"$new"
rm -f "$new.ref"
if [ "${1:-}" = --check ]; then cmp -s "$new" README.md; else cp "$new" README.md; fi
