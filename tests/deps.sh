#!/usr/bin/env bash
# Installs what `make test` and `make demo` need on Debian 12, 13 or Ubuntu 24.04. Does nothing where all is there.
# As root: apt-get. With sudo: sudo apt-get. Else: prints the line to run and fails.
set -eu
need=()
have_header() { echo "#include <$1>" | ${CC:-cc} -E -x c - >/dev/null 2>&1; }
command -v "${CC:-cc}" >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || need+=(gcc libc6-dev)
command -v make >/dev/null 2>&1 || need+=(make)
command -v gnuplot >/dev/null 2>&1 || need+=(gnuplot-nox)
command -v sqlite3 >/dev/null 2>&1 || need+=(sqlite3)
command -v awk >/dev/null 2>&1 || need+=(mawk)
if command -v "${CC:-cc}" >/dev/null 2>&1; then
    have_header jansson.h || need+=(libjansson-dev)
    have_header sqlite3.h || need+=(libsqlite3-dev)
    have_header gsl/gsl_rng.h || need+=(libgsl-dev)
    { echo '#include <stdarg.h>'; echo '#include <stddef.h>'; echo '#include <stdint.h>'; echo '#include <setjmp.h>'; echo '#include <cmocka.h>'; } |
        ${CC:-cc} -E -x c - >/dev/null 2>&1 || need+=(libcmocka-dev)
else
    need+=(libjansson-dev libsqlite3-dev libgsl-dev libcmocka-dev)
fi
# MPI serves only build/forerun-mpi; its test runs where it is installed and is installed with the rest.
command -v mpicc >/dev/null 2>&1 || need+=(libopenmpi-dev openmpi-bin)
[ ${#need[@]} -eq 0 ] && exit 0
line="apt-get update && apt-get install -y --no-install-recommends ${need[*]}"
if [ "$(id -u)" = 0 ]; then
    as=()
elif command -v sudo >/dev/null 2>&1; then
    as=(sudo)
else
    echo "forerun needs packages that are not installed, and this user can't install them. Run as root:" >&2
    echo "    $line" >&2
    exit 1
fi
echo "installing: ${need[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as[@]}" apt-get update -qq
"${as[@]}" apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
