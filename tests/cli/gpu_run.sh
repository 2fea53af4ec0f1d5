# tests/gpu/run.sh (make gpu-test): adds its parts up, and one that stops short is a failure. With programs that pretend.
mkdir -p "$work/gpu_run/gpu"
pretend() { # NAME TEXT CODE
    printf '#!/bin/sh\necho "%s"\nexit %d\n' "$2" "$3" >"$work/gpu_run/gpu/test_$1"
    chmod +x "$work/gpu_run/gpu/test_$1"
}
gpu_run() { # LAST-LINE CODE: of the parts kernels and fp8 on one GPU
    CUDA_VISIBLE_DEVICES=0 bash tests/gpu/run.sh "$work/gpu_run" kernels fp8 ranks >"$out" 2>&1
    [ $? -eq "$2" ] && [ "$(tail -n 1 "$out")" = "$1" ] && pass || fail "tests/gpu/run.sh: expected '$1', exit $2" "$(cat "$out")"
}
pretend kernels "3 passed, 0 failed" 0
pretend fp8 "2 passed, 0 failed" 0
gpu_run "5 passed, 0 failed" 0
prints "ranks: left out, needs 2 GPUs"
pretend fp8 "1 passed, 1 failed" 1
gpu_run "4 passed, 1 failed" 1
pretend fp8 "ok so far" 0
gpu_run "3 passed, 1 failed" 1
prints "fp8 did not run to its end"
pretend fp8 "2 passed, 0 failed" 3
gpu_run "5 passed, 1 failed" 1
