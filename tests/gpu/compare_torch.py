#!/usr/bin/env python3
"""PyTorch's grouped product and attention in the regime of bench_kernels: 1 s of idling, then about 0.12 s of runs."""
import statistics
import time

import torch
import torch.nn.functional as F


def burst(run, budget=0.12):
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    t = time.time()
    run()
    torch.cuda.synchronize()
    n = max(5, min(60, int(budget / (time.time() - t))))
    time.sleep(1)
    run(), run()
    e = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    for i in range(n):
        e[i].record()
        run()
    e[n].record()
    torch.cuda.synchronize()
    return statistics.median(e[i].elapsed_time(e[i + 1]) for i in range(n))


def show(name, ms, flops):
    print(f"{name:52s} {ms * 1e3:9.1f} us {flops / ms / 1e9:6.0f} TFLOP/s", flush=True)


print("torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
torch.manual_seed(1)
E, rows = 128, 1024
for name, n, k in (("up+gate 4096->3072", 3072, 4096), ("down 1536->4096", 4096, 1536)):
    a = torch.randn(E * rows, k, device="cuda", dtype=torch.bfloat16)
    w = torch.randn(E, n, k, device="cuda", dtype=torch.bfloat16) * 0.02
    for kind in ("equal", "multinomial"):
        if kind == "equal":
            count = torch.full((E,), rows)
        else:
            count = torch.bincount(torch.randint(0, E, (E * rows,)), minlength=E)
        offs = count.cumsum(0).to(device="cuda", dtype=torch.int32)
        try:
            ms = burst(lambda: torch._grouped_mm(a, w.transpose(-2, -1), offs=offs))
            show(f"torch._grouped_mm {name} {kind}", ms, 2 * E * rows * n * k)
        except Exception as x:
            print("torch._grouped_mm", name, kind, type(x).__name__, str(x)[:200])
    del a, w
for b, length in ((64, 256), (16, 1024), (4, 4096), (1, 16384)):
    q = torch.randn(b, 64, length, 128, device="cuda", dtype=torch.bfloat16)
    kv = [torch.randn(b, 64, length, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        ms = burst(lambda: F.scaled_dot_product_attention(q, kv[0], kv[1], is_causal=True))
    show(f"torch SDPA (cuDNN, 64/64 heads) {b} x {length}", ms, 4 * b * 64 * 128 * length * length / 2)
