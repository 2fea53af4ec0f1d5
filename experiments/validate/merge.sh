#!/usr/bin/env bash
# Stores of several parts as one, so that one `forerun validate` and one figure take in all of a round.
#   experiments/validate/merge.sh OUT.db PART.db...
set -eu
out=${1:?OUT.db PART.db...}
shift
[ -e "$out" ] && echo "$out is there already" >&2 && exit 2
for part in "$@"; do
    if [ ! -e "$out" ]; then
        sqlite3 "$part" ".backup '$out'"
        continue
    fi
    sqlite3 "$out" "ATTACH '$part' AS part;
        CREATE TEMP TABLE own AS SELECT id, id + (SELECT max(id) FROM main.runs) AS now FROM part.runs;
        CREATE TEMP TABLE r AS SELECT * FROM part.runs;
        UPDATE r SET id = (SELECT now FROM own WHERE own.id = r.id);
        INSERT INTO main.runs SELECT * FROM r;"
    for table in forwards spans requests attached; do
        sqlite3 "$out" "ATTACH '$part' AS part;
            CREATE TEMP TABLE t AS SELECT * FROM part.$table;
            UPDATE t SET run = run + (SELECT max(id) FROM main.runs) - (SELECT max(id) FROM part.runs);
            INSERT INTO main.$table SELECT * FROM t;"
    done
done
