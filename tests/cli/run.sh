#!/usr/bin/env bash
# Runs the command-line contract tests (tests/cli/*.sh) against $FORERUN (default build/forerun) and closes on
# "N passed, N failed". Run from the repository's root. Arguments choose scripts by name.
set -u
cd "$(dirname "$0")/../.."
. tests/cli/lib.sh
for path in tests/cli/*.sh; do
    script=$(basename "$path" .sh)
    case $script in lib | run) continue ;; esac
    [ $# -gt 0 ] && [[ " $* " != *" $script "* ]] && continue
    . "$path"
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
