# A sweep over MPI ranks stores the rows of the threaded one.
mpi=build/forerun-mpi # made anew: one of yesterday would store yesterday's rows
if command -v mpicc >/dev/null; then
    make -s mpi BUILD=build >"$work/mpi.log" 2>&1 || fail "make mpi" "$(cat "$work/mpi.log")"
fi
if ! command -v mpirun >/dev/null || [ ! -x "$mpi" ]; then
    echo "no mpirun here: the sweep over several hosts is not tested"
else
    cat >"$work/mpi.json" <<'J'
{"title": "a small grid",
 "base": {"model": "qwen3-30b-a3b", "machine": "h200x8", "layers": 6, "forwards": 2},
 "cells": [{"strategy": ["dp", "tp", "ep", "asyncep"], "tokens": 2048, "seq": [512, 1024]},
           {"strategy": "tp", "tp": 3, "tokens": 1024, "seq": 1024}]}
J
    rows="SELECT key, cell, status, reason, config, result, forward_s FROM cells ORDER BY cell"
    expect 0 sweep "$work/mpi.json" --db "$work/threads.db" --jobs 2
    for ranks in 1 2 3; do
        rm -f "$work/mpi.db"
        if timeout 60 mpirun --allow-run-as-root --oversubscribe -n $ranks "$mpi" sweep "$work/mpi.json" --db "$work/mpi.db" \
            >"$out" 2>"$errors" </dev/null; then pass; else fail "mpirun -n $ranks" "$(cat "$errors")"; fi
        sqlite3 "$work/threads.db" "$rows" >"$work/threads.txt"
        sqlite3 "$work/mpi.db" "$rows" >"$work/mpi.txt"
        same "$work/threads.txt" "$work/mpi.txt" "threads against $ranks MPI ranks"
    done
    [ -s "$work/mpi.txt" ] && pass || fail "the MPI sweep stored nothing"
    # a wrong input ends the whole job, with the exit code of the plain program
    timeout 60 mpirun --allow-run-as-root --oversubscribe -n 2 "$mpi" sweep /no/such/grid.json --db "$work/x.db" >"$out" 2>"$errors" </dev/null
    [ $? -eq 2 ] && pass || fail "a missing grid under mpirun should exit with 2"
    says /no/such/grid.json
    # ranks of a live run as processes
    for ranks in 2 4 8; do
        timeout 60 mpirun --allow-run-as-root --oversubscribe -n $ranks build/mpi/test_conduct_mpi >"$out" 2>"$errors" </dev/null &&
            grep -q "^good" "$out" && pass || fail "a run over $ranks processes" "$(cat "$out" "$errors")"
    done
fi
