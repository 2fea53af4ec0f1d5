#!/bin/sh
# Turns JSON files into C tables: embed.sh TABLE FILE... prints static arrays and `const fr_builtin TABLE[]`,
# one row a file, named by the file without its ending, in the order given (the Makefile sorts), NULL at the end.
set -eu
table=$1
shift
n=0
for f in "$@"; do
    echo "static const char ${table}_${n}[] = {"
    LC_ALL=C od -An -v -tu1 "$f" | sed 's/[0-9][0-9]*/&,/g'
    echo "0};"
    n=$((n + 1))
done
echo "const fr_builtin ${table}[] = {"
n=0
for f in "$@"; do
    echo "    {\"$(basename "$f" .json)\", ${table}_${n}, sizeof ${table}_${n} - 1},"
    n=$((n + 1))
done
echo "    {0, 0, 0}};"
