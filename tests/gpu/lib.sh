# Sourced by the scripts here: libraries of CUDA 13 (where PyTorch brings them, its folders come first), and counts of checks.
python=${PYTHON:-python3}
for d in $($python -c 'import os, nvidia; print(*[os.path.join(p, x, "lib") for p in nvidia.__path__ for x in os.listdir(p)])' 2>/dev/null); do
    [ -d "$d" ] && LD_LIBRARY_PATH="$d:${LD_LIBRARY_PATH:-}"
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
passed=0 failed=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "FAILED: $*"; }
has() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
# How many GPUs a program started from here sees.
gpus_here() {
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .; else nvidia-smi -L 2>/dev/null | grep -c '^GPU'; fi
}
