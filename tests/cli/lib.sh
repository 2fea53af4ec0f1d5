# Sourced by every script of tests/cli: counters, and checks that name what was expected.
# $out and $errors hold what the last `expect` printed; $work is a folder that goes away.
passed=0 failed=0
forerun=$(realpath "${FORERUN:-build/forerun}")
repo=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$work/out errors=$work/errors

fail() {
    failed=$((failed + 1))
    echo "FAIL ($script): $1"
    [ -z "${2:-}" ] || echo "$2" | head -n 5 | sed 's/^/    /'
}
pass() { passed=$((passed + 1)); }

# expect CODE ARGS...: runs forerun and checks the exit code; with a code above 0, that stderr is one line that begins
# with the program's name.
expect() {
    local code=$1 got
    shift
    timeout 60 "$forerun" "$@" >"$out" 2>"$errors" </dev/null
    got=$?
    if [ $got -ne "$code" ]; then
        fail "forerun $*: exit code $got, expected $code" "$(cat "$errors")"
        return 1
    fi
    if [ "$code" -ne 0 ] && { [ "$(wc -l <"$errors")" -ne 1 ] || ! grep -q '^forerun' "$errors"; }; then
        fail "forerun $*: expected one line on stderr" "$(cat "$errors")"
        return 1
    fi
    pass
}

# says TEXT: stderr holds it (fixed string).
says() {
    if grep -qF -- "$1" "$errors"; then pass; else fail "the error should name '$1'" "$(cat "$errors")"; fi
}
# prints TEXT: stdout holds it.
prints() {
    if grep -qF -- "$1" "$out"; then pass; else fail "the output should hold '$1'" "$(cat "$out")"; fi
}
# json EXPRESSION EXPECTED: an SQL expression over j, the JSON on stdout, e.g. "json_extract(j,'\$.fits')".
json() {
    local got
    got=$(sqlite3 :memory: "WITH o AS (SELECT CAST(readfile('$out') AS TEXT) AS j) SELECT $1 FROM o" 2>&1)
    if [ "$got" = "$2" ]; then pass; else fail "$1 is '$got', expected '$2'"; fi
}
same() { if cmp -s "$1" "$2"; then pass; else fail "$3: the files differ"; fi; }

# A small cell: 8 of the layers of a small model, so that every test is fast.
small="--model qwen3-30b-a3b --machine h200x8 --layers 8 --tokens 2K --seq 1K --forwards 2"
