# sweep and plot: resumable, the same bytes for any number of threads, figures in three formats.
cat >"$work/grid.json" <<'J'
{"title": "a small grid",
 "base": {"model": "qwen3-30b-a3b", "machine": "h200x8", "layers": 6, "forwards": 2},
 "cells": [{"strategy": ["dp", "tp", "ep", "asyncep"], "tokens": 2048, "seq": [512, 1024]},
           {"strategy": "asyncep", "ep": [2, 8], "tokens": [512, 1024, 2048, 4096], "seq": 256},
           {"strategy": "ep", "what-if": ["none", "nvlink=2x", "hbm=2x"], "tokens": 1024, "seq": 1024},
           {"strategy": "tp", "tp": 3, "tokens": 1024, "seq": 1024}]}
J
cells="SELECT key, cell, status, reason, config, result, forward_s FROM cells ORDER BY cell"
expect 0 sweep "$work/grid.json" --db "$work/one.db" --jobs 1 --csv "$work/one.csv" && prints asyncep
expect 0 sweep "$work/grid.json" --db "$work/four.db" --jobs 4
sqlite3 "$work/one.db" "$cells" >"$work/one.txt"
sqlite3 "$work/four.db" "$cells" >"$work/four.txt"
same "$work/one.txt" "$work/four.txt" "1 thread against 4"
[ "$(sqlite3 "$work/one.db" "SELECT count(*) FROM cells")" = 20 ] && pass || fail "the grid has other than 20 cells"
[ "$(sqlite3 "$work/one.db" "SELECT count(*) FROM cells WHERE status='refused' AND reason LIKE '%tp 3%'")" = 1 ] && pass ||
    fail "the refused cell is not stored with its reason"
[ "$(wc -l <"$work/one.csv")" = 21 ] && pass || fail "the CSV has other than 20 cells"
# a file that holds half of the cells is filled up, none doubled
sqlite3 "$work/four.db" "DELETE FROM cells WHERE cell % 2 = 1"
expect 0 sweep "$work/grid.json" --db "$work/four.db" --jobs 2
sqlite3 "$work/four.db" "$cells" >"$work/four.txt"
same "$work/one.txt" "$work/four.txt" "a resumed sweep"
# cells of other code or tables are not mixed with this one's: refused in one line, or played again
sqlite3 "$work/four.db" "UPDATE info SET value='f00' WHERE key='source'; UPDATE cells SET forward_s = 1"
expect 2 sweep "$work/grid.json" --db "$work/four.db" --jobs 2 && says "20 cells were played by other code or tables (f00"
[ "$(wc -l <"$errors")" = 1 ] && pass || fail "a file of other code is refused in more than a line"
[ "$(sqlite3 "$work/four.db" "SELECT count(*) FROM cells WHERE forward_s = 1")" = 20 ] && pass || fail "a refused file was changed"
expect 0 sweep "$work/grid.json" --db "$work/four.db" --jobs 2 --anew && says "20 cells of other code"
sqlite3 "$work/four.db" "$cells" >"$work/four.txt"
same "$work/one.txt" "$work/four.txt" "a sweep played anew"
expect 0 sweep "$work/grid.json" --db "$work/four.db" --jobs 2 && says "20 were there"
# nor are cells of a time that did not say which code it was
sqlite3 "$work/four.db" "DELETE FROM info WHERE key='source'"
expect 2 sweep "$work/grid.json" --db "$work/four.db" && says "(unknown, this is "
expect 2 sweep && says "forerun sweep"
expect 2 sweep "$work/grid.json" --jobs 0 --db "$work/x.db" && says --jobs
expect 2 sweep "$work/grid.json" --db "$work/grid.json" && says grid.json

if command -v gnuplot >/dev/null 2>&1; then
    for f in throughput mfu breakdown exposed memory pareto whatif; do
        expect 0 plot $f "$work/one.db" -o "$work/$f.png"
        [ "$(head -c 4 "$work/$f.png" | tail -c 3)" = PNG ] && pass || fail "$f.png is no picture"
    done
    expect 0 plot memory "$work/one.db" -o "$work/memory.pdf"
    expect 0 plot memory "$work/one.db" -o "$work/memory.svg"
    grep -q '<svg' "$work/memory.svg" && pass || fail "memory.svg is no picture"
    "$forerun" simulate $small --strategy ep --db "$work/one.db" >/dev/null 2>&1
    expect 0 plot gantt "$work/one.db" -o "$work/gantt.png" --rank 2 --layer 3
    expect 0 plot critical "$work/one.db" -o "$work/critical.png"
    "$forerun" simulate --model qwen3-30b-a3b --layers 2 --strategy dp --trace azure-code --requests 40 --db "$work/one.db" >/dev/null 2>&1
    expect 0 plot ttft "$work/one.db" -o "$work/ttft.png" --data "$work/ttft.tsv"
    [ "$(tail -n 1 "$work/ttft.tsv" | cut -f 2)" = 1 ] && pass || fail "the CDF does not end at 1"
    expect 2 plot gantt "$work/one.db" -o "$work/x.png" --layer 900 && says 900
    # experts split by width over attention groups: as many degrees as ranks; a sweep of traces has no MFU over lengths
    cat >"$work/width.json" <<'J'
{"title": "experts split by width, a trace",
 "base": {"model": "qwen3-30b-a3b", "machine": "h200x8", "layers": 2, "trace": "batch:count=16,len=512"},
 "cells": [{"gpus": 4, "attention": "dp", "experts": "tp"}]}
J
    expect 0 sweep "$work/width.json" --db "$work/width.db"
    expect 0 plot breakdown "$work/width.db" -o "$work/x.svg" --data "$work/width.tsv"
    rm "$work/x.svg"
    grep -q 'dp+tp 4' "$work/width.tsv" && pass || fail "dp+tp on 4 GPUs has another degree" "$(cat "$work/width.tsv")"
    expect 2 plot mfu "$work/width.db" -o "$work/x.png" && says --seq
    expect 2 plot throughput "$work/one.db" -o /no/such/folder/x.png && says /no/such/folder
else
    echo "no gnuplot here: figures are not drawn"
fi
expect 2 plot kitchen "$work/one.db" -o "$work/x.png" && says kitchen
expect 2 plot memory "$work/one.db" && says "-o"
expect 2 plot memory "$work/one.db" -o "$work/x.gif" && says x.gif
expect 2 plot memory "$work/one.db" -o "$work/x.png" --rank 1 && says --rank
# no gnuplot: one clear line, exit 1
PATH=/nowhere "$forerun" plot memory "$work/one.db" -o "$work/x.png" >"$out" 2>"$errors"
[ $? -eq 1 ] && grep -q "gnuplot is not installed" "$errors" && pass || fail "without gnuplot" "$(cat "$errors")"
[ -e "$work/x.png" ] && fail "a refused plot left a file" || pass
