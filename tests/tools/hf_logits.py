#!/usr/bin/env python3
"""Our logits against Hugging Face transformers, on tiny random checkpoints of every architecture that the engine executes.

    hf_logits.py --engine build/forerun-cuda [--dir DIR] [--device cuda] [--make-only]

For each model: transformers in fp32 is the reference, transformers in bf16 sets the scale of bf16's error, and
`forerun run --prompts` must have a root-mean-square error over all logits of at most 1.5 times that, and the same bits in
two runs. Requests whose last token has, in any layer of the reference, less than 2^-7 between the router logits of the
last expert chosen and the first one left out are counted apart: their routing can flip with rounding.

Arg-max. It flips when the errors of two logits differ by more than the reference's margin between them. So the error that
a margin has to exceed is that of a difference of two logits, sqrt(2) e for uncorrelated errors of rms e; it is noise, and
at a margin of 1 e a quarter of all requests flip, whatever computes them in bf16. And it is the error of that request:
where the routing of some token in its context flips, the whole request is off by several times the usual error. Two
things are therefore asked, e being a request's own rms error: no flip where the margin is above 3 e (2.1 deviations of a
difference); and over all requests no more flips than noise of that size explains, counted with the normal distribution
over all rivals of the top token. Both are printed for transformers in bf16 too, with the flips above 1 and 3 times the
rms error of all requests together.
"""
import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

LENGTHS = [1, 2, 3, 7, 8, 17, 64, 100, 127, 128, 129, 255, 500, 1000, 1023, 2048, 3001, 4096]
SHORT = 40  # further prompts of 1 to 300 tokens
SIBLINGS = 12  # prompts that begin with the same 600 tokens
MARGIN = 2.0**-7

COMMON = dict(max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
MODELS = {
    "qwen3-gqa": Qwen3MoeConfig(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64, num_experts=16,
        num_experts_per_tok=4, moe_intermediate_size=128, norm_topk_prob=True, vocab_size=512, rope_theta=1e6,
        initializer_range=0.06, **COMMON),
    "qwen3-odd-heads-raw-topk": Qwen3MoeConfig(
        hidden_size=320, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=3, head_dim=128, num_experts=10,
        num_experts_per_tok=3, moe_intermediate_size=96, norm_topk_prob=False, vocab_size=500, rope_theta=1e6,
        initializer_range=0.06, **COMMON),
    "qwen3-128-experts": Qwen3MoeConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=1, head_dim=128, num_experts=128,
        num_experts_per_tok=8, moe_intermediate_size=192, norm_topk_prob=True, vocab_size=768, rope_theta=1e6,
        initializer_range=0.05, **COMMON),
    "mixtral": MixtralConfig(
        hidden_size=512, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=64,
        num_local_experts=8, num_experts_per_tok=2, intermediate_size=352, vocab_size=384, rope_theta=1e6,
        sliding_window=None, initializer_range=0.05, **COMMON),
}


def make(name, config, root):
    """A checkpoint with random weights, norms away from 1, in bf16; the first one in shards."""
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for key, p in model.named_parameters():
        if "norm" in key:
            p.data = 1 + 0.2 * torch.randn_like(p)
    path = os.path.join(root, name)
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="4MB" if name == "qwen3-gqa" else "50GB")
    return path


def prompts(config, path):
    rng = random.Random(7)
    lengths = LENGTHS + [rng.randint(1, 300) for _ in range(SHORT)]
    rng.shuffle(lengths)
    rows = [[rng.randrange(config.vocab_size) for _ in range(n)] for n in lengths]
    shared = [rng.randrange(config.vocab_size) for _ in range(600)]
    for _ in range(SIBLINGS):
        rows.append(shared + [rng.randrange(config.vocab_size) for _ in range(rng.randint(1, 90))])
    everything = list(range(config.vocab_size))
    with open(path, "w") as f:
        for i, ids in enumerate(rows):
            f.write(json.dumps({"id": f"r{i}", "ids": ids, "candidates": everything}) + "\n")
    return rows


@torch.no_grad()
def reference(path, rows, dtype, device):
    """Logits at the last position of each prompt alone, and the least router margin of its last token."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device).eval()
    k = model.config.num_experts_per_tok
    logits, margins = [], []
    for ids in rows:
        out = model(torch.tensor([ids], device=device), output_router_logits=True, use_cache=False)
        logits.append(out.logits[0, -1].float().cpu())
        margin = float("inf")
        for layer in out.router_logits:
            top = layer.reshape(-1, layer.shape[-1])[-1].float().topk(k + 1).values
            margin = min(margin, float(top[k - 1] - top[k]))
        margins.append(margin)
    return torch.stack(logits), margins


def run_engine(engine, path, prompt_file, runs):
    """Answers of each run, a list of further options; all runs in one process, which starts the GPU once. None: one failed."""
    base = os.path.join(path, "runs")
    shutil.rmtree(base, ignore_errors=True)
    os.makedirs(base)
    with open(os.path.join(base, "cells"), "w") as f:
        for i, extra in enumerate(runs):
            f.write(f"{i} | --answers {base}/{i}.jsonl {' '.join(extra)}\n")
    command = [engine, "run", "--weights", path, "--prompts", prompt_file, "--machine", "h200x1", "--strategy", "dp",
               "--no-predict", "--warmup", "0", "--timeout", "20", "--json", "--cells", f"{base}/cells", "--results", base]
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        print("  engine failed:", (done.stdout + done.stderr).strip()[-800:])
        return None
    print(f"  engine: {time.time() - begin:.1f} s for {len(runs)} runs")
    out = []
    for i, extra in enumerate(runs):
        with open(f"{base}/{i}.jsonl") as f:
            text = f.read()
        with open(f"{base}/{i}.json") as f:
            result = json.load(f)
        print(f"    {' '.join(extra) or 'plain'}: {result['forwards']} forwards, {result['cached_tokens']} tokens from the cache")
        rows = {row["id"]: row for row in map(json.loads, text.splitlines())}
        out.append((text, torch.tensor([rows[f"r{j}"]["logits"] for j in range(len(rows))], dtype=torch.float32),
                    torch.tensor([rows[f"r{j}"]["argmax"] for j in range(len(rows))])))
    return out


def rms(x):
    return float(x.double().pow(2).mean().sqrt())


def flips(got, full):
    """Flips: all; how many noise would make, the sum over requests and rivals of the probability that a difference as
    noisy as those of the request exceeds the rival's distance to the top; with a margin above 3 times the request's own
    rms error; above 1 and above 3 times that of all requests."""
    top = full.argmax(1, keepdim=True)
    wrong = (got.argmax(1, keepdim=True) != top).squeeze(1)
    distance = full.gather(1, top) - full
    rival = torch.ones_like(full, dtype=torch.bool).scatter(1, top, False)
    error = (got - full).double()
    difference = torch.where(rival, error.gather(1, top) - error, 0.0)
    noise = (difference.pow(2).sum(1, keepdim=True) / (full.shape[1] - 1)).sqrt().clamp(min=1e-12)
    expected = float((0.5 * torch.erfc(distance / noise / math.sqrt(2)))[rival].sum())
    e, own = rms(error), error.pow(2).mean(1).sqrt()
    gap = full.topk(2).values
    margin = gap[:, 0] - gap[:, 1]
    count = [int((wrong & (margin > t)).sum()) for t in (3 * own, e, 3 * e)]
    return int(wrong.sum()), expected, *count


def check(name, config, args):
    print(name)
    path = make(name, config, args.dir)
    prompt_file = os.path.join(path, "prompts.jsonl")
    rows = prompts(config, prompt_file)
    if args.make_only:
        return True
    full, margins = reference(path, rows, torch.float32, args.device)
    half, _ = reference(path, rows, torch.bfloat16, args.device)
    if args.engine is None:
        apart = torch.tensor([m < MARGIN for m in margins])
        print(f"  transformers bf16 rms {rms((half - full)[~apart]):.5f}, apart {int(apart.sum())} of {len(rows)}")
        return True
    others = {"cut in chunks": ["--chunk-tokens", "192", "--budget", "700"],
              "from a prefix cache": ["--cache-tokens", "30000", "--budget", "2000"]}
    runs = run_engine(args.engine, path, prompt_file, [[], *others.values()])
    again = run_engine(args.engine, path, prompt_file, [[]])
    if runs is None or again is None:
        return False
    text, ours, answered = runs[0]
    apart = torch.tensor([m < MARGIN for m in margins])
    error, allowed = rms((ours - full)[~apart]), rms((half - full)[~apart])
    top = full.topk(2).values
    gap, same = top[:, 0] - top[:, 1], ours.argmax(1) == full.argmax(1)
    own = (ours - full).pow(2).mean(1).sqrt()
    clear = (gap > 3 * own) & ~apart
    identical = text == again[0][0]
    counted = [flips(x[~apart], full[~apart]) for x in (ours, half)]
    good = {
        "finite": bool(torch.isfinite(ours).all()),
        "rms": error <= 1.5 * allowed,
        "argmax": bool(same[clear].all()) and bool((answered == ours.argmax(1)).all()),
        "flips": counted[0][0] <= counted[0][1] + 3 * math.sqrt(counted[0][1]) + 1,
        "bits": identical,
    }
    print(f"  rms error {error:.5f}, transformers bf16 {allowed:.5f} (ratio {error / allowed:.3f}, at most 1.5); "
          f"logits rms {rms(full):.3f}")
    if apart.any():
        print(f"  apart {int(apart.sum())} of {len(rows)}: ours {rms((ours - full)[apart]):.5f}, "
              f"transformers bf16 {rms((half - full)[apart]):.5f}")
    print(f"  arg-max equal {int(same.sum())} of {len(rows)}; with a margin above 3x the request's error "
          f"{int(same[clear].sum())} of {int(clear.sum())}")
    for who, (every, expected, clearly, one, three) in zip(("ours", "transformers bf16"), counted):
        print(f"  arg-max of {who}: {every} of {int((~apart).sum())} differ, {expected:.1f} expected of noise; with a margin "
              f"above 3x the request's own error {clearly}; above 1x the error of all {one}, 3x {three}")
    worst = sorted(((rms(ours[i] - full[i]), len(rows[i])) for i in range(len(rows))), reverse=True)[:4]
    print("  worst requests (rms, tokens):", ", ".join(f"{e:.4f} {n}" for e, n in worst))
    for what, (_, theirs, _) in zip(others, runs[1:]):
        their_error = rms((theirs - full)[~apart])
        clear = (gap > 3 * (theirs - full).pow(2).mean(1).sqrt()) & ~apart
        good[what] = their_error <= 1.5 * allowed and bool((theirs.argmax(1) == full.argmax(1))[clear].all())
        print(f"  {what}: rms error {their_error:.5f} (ratio {their_error / allowed:.3f})")
    print("  two runs:", "identical bits" if identical else "DIFFERENT BITS")
    print(" ", "PASS" if all(good.values()) else "FAIL " + ", ".join(k for k, v in good.items() if not v))
    return all(good.values())


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--engine")
    p.add_argument("--dir", default="/tmp/hf_logits")
    p.add_argument("--device", default="cuda")
    p.add_argument("--make-only", action="store_true")
    p.add_argument("--only")
    args = p.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(4)  # what is left to the CPU is small: more threads only spin
    names = [n for n in MODELS if not args.only or args.only == n]
    passed = sum(check(n, MODELS[n], args) for n in names)
    print(f"{passed} passed, {len(names) - passed} failed")
    sys.exit(passed != len(names))


if __name__ == "__main__":
    main()
