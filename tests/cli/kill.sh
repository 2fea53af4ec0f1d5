# A sweep killed with SIGKILL at any point goes on where it stopped: no cell lost, none doubled, the same bytes.
cat >"$work/kill.json" <<'J'
{"title": "killed again and again",
 "base": {"model": "qwen3-30b-a3b", "machine": "h200x8", "forwards": 2, "no-fold": true},
 "cells": [{"strategy": ["dp", "tp", "ep", "asyncep", "dwdp"], "tokens": [1024, 2048, 4096, 8192], "seq": [256, 512, 1024],
            "skew": ["uniform", "zipf:0.5", "hot:4"]},
           {"strategy": "tp", "tp": 3, "tokens": 1024, "seq": 1024}]}
J
rows="SELECT key, cell, status, reason, config, result, forward_s FROM cells ORDER BY cell"
expect 0 sweep "$work/kill.json" --db "$work/whole.db" --jobs 2
sqlite3 "$work/whole.db" "$rows" >"$work/whole.txt"
begun=$(date +%s%N) before=0 advanced=0
for i in $(seq 20); do
    "$forerun" sweep "$work/kill.json" --db "$work/kill.db" --jobs 1 >/dev/null 2>&1 </dev/null &
    pid=$!
    if [ $((i % 2)) = 0 ]; then # at any time, also before the first result
        sleep "0.$((RANDOM % 6))$((RANDOM % 10))"
    else # as soon as the store has grown: however slow the machine, these kills hit a sweep at work
        for _ in $(seq 200); do
            [ "$(sqlite3 "$work/kill.db" 'SELECT count(*) FROM cells' 2>/dev/null || echo 0)" -gt $before ] && break
            kill -0 $pid 2>/dev/null || break
            sleep 0.05
        done
    fi
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    state=$(sqlite3 "$work/kill.db" "SELECT count(*) || ' ' || count(DISTINCT cell) || ' ' || (SELECT integrity_check FROM pragma_integrity_check) FROM cells" 2>/dev/null)
    read -r stored distinct integrity <<<"${state:-0 0 ok}"
    if [ "$stored" -lt $before ] || [ "$stored" != "$distinct" ] || [ "$integrity" != ok ]; then fail "after kill $i the store holds '$state', before it $before cells"; fi
    [ "$stored" -gt $before ] && advanced=$((advanced + 1))
    before=$stored
    [ $advanced -ge 2 ] && [ $((($(date +%s%N) - begun) / 1000000)) -gt 5000 ] && break
done
[ $advanced -ge 2 ] && pass || fail "only $advanced of $i killed sweeps left cells behind: the kills hit nothing"
expect 0 sweep "$work/kill.json" --db "$work/kill.db" --jobs 2
sqlite3 "$work/kill.db" "$rows" >"$work/kill.txt"
n=$(sqlite3 "$work/kill.db" "SELECT count(*) FROM cells")
[ "$n" = 181 ] && pass || fail "the killed sweep holds $n cells, not 181"
same "$work/whole.txt" "$work/kill.txt" "a killed sweep against a whole one"
