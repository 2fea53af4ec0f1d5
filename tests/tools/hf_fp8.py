#!/usr/bin/env python3
"""Our FP8 logits against Hugging Face transformers, on a tiny checkpoint in the layout of Qwen's FP8 models.

    hf_fp8.py --engine build/forerun-cuda [--dir DIR] [--device cuda] [--make-only]

A random bf16 checkpoint is quantised in blocks of 128 x 128 (weight e4m3, weight_scale_inv). The reference is transformers
in fp32 with the dequantised weights, every linear layer's input rounded to e4m3 in groups of 128 (the scheme itself, exact);
the same in bf16 sets the scale of what rounding does on top (an e4m3 step is 6 %, and roundings flip some); the engine's
root-mean-square error must be at most 1.5 times that, no more arg-maxes may flip than noise of that size explains (hf_logits.py), and two
runs must give the same bytes. The error of quantising (against the unquantised model) is printed.
"""
import argparse
import glob
import json
import math
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch
import torch.nn.functional as F
from hf_logits import COMMON, MARGIN, flips, make, prompts, rms, run_engine
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

MODELS = {
    "fp8-scales-fp32": (torch.float32, Qwen3MoeConfig(
        hidden_size=512, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts=16,
        num_experts_per_tok=4, moe_intermediate_size=256, norm_topk_prob=True, vocab_size=512, rope_theta=1e6,
        initializer_range=0.05, **COMMON)),
    "fp8-scales-bf16": (torch.bfloat16, Qwen3MoeConfig(
        hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=128, num_experts=32,
        num_experts_per_tok=8, moe_intermediate_size=128, norm_topk_prob=True, vocab_size=512, rope_theta=1e6,
        initializer_range=0.05, **COMMON)),
}


def quantise_weight(w, scale_type):
    """e4m3 and its scales by blocks of 128 x 128, and what they stand for."""
    n, k = w.shape
    pad = F.pad(w.float(), (0, -k % 128, 0, -n % 128))
    blocks = pad.view(pad.shape[0] // 128, 128, pad.shape[1] // 128, 128)
    scale = (blocks.abs().amax((1, 3)) / 448).to(scale_type)
    wide = scale.float()[:, None, :, None]
    q = (blocks / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    back = (q.float() * wide).view_as(pad)[:n, :k].contiguous()
    return q.view_as(pad)[:n, :k].contiguous(), scale.contiguous(), back


def fake(x):
    """The input of a linear layer as the tensor cores see it: groups of 128, e4m3."""
    shape = x.shape
    g = x.float().view(*shape[:-1], shape[-1] // 128, 128)
    most = g.abs().amax(-1, keepdim=True)
    q = torch.where(most > 0, g * (448 / most), torch.zeros_like(g)).to(torch.float8_e4m3fn).float()
    return (q * (most / 448)).view(shape).to(x.dtype)


def is_linear(key):
    return key.endswith("_proj.weight") and "norm" not in key


def quantise_checkpoint(source, target, scale_type):
    """Writes the FP8 checkpoint and returns the dequantised tensors by their published names."""
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    with open(os.path.join(source, "config.json")) as f:
        config = json.load(f)
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                                     "weight_block_size": [128, 128]}
    with open(os.path.join(target, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    tensors, values = {}, {}
    for file in glob.glob(os.path.join(source, "*.safetensors")):
        for key, value in load_file(file).items():
            if "experts.gate_up_proj" in key or key.endswith("experts.down_proj"):
                stem = key.rsplit(".", 1)[0]
                for e in range(value.shape[0]):
                    parts = zip(("gate_proj", "up_proj"), value[e].chunk(2)) if "gate_up" in key else [("down_proj", value[e])]
                    for name, part in parts:
                        values[f"{stem}.{e}.{name}.weight"] = part.contiguous()
            else:
                values[key] = value
    back = {}
    for key, value in values.items():
        if is_linear(key):
            tensors[key], tensors[key + "_scale_inv"], back[key] = quantise_weight(value, scale_type)
        else:
            tensors[key] = value.contiguous()
            back[key] = value.float()
    save_file(tensors, os.path.join(target, "model.safetensors"))
    return back


def load_values(model, values):
    """Published names into the model, whichever way it holds experts."""
    own, taken = model.state_dict(), set()
    new = {}
    for key, p in own.items():
        if key in values:
            new[key] = values[key]
            taken.add(key)
        elif key.endswith("experts.gate_up_proj") or key.endswith("experts.down_proj"):
            stem = key.rsplit(".", 1)[0]
            names = ("gate_proj", "up_proj") if "gate_up" in key else ("down_proj",)
            rows = []
            for e in range(p.shape[0]):
                keys = [f"{stem}.{e}.{n}.weight" for n in names]
                taken.update(keys)
                rows.append(torch.cat([values[k] for k in keys]))
            new[key] = torch.stack(rows)
    assert taken == set(values), sorted(set(values) - taken)[:3]
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in new.items()}, strict=False)


class Quantised:
    """While active, linear layers that hold quantised weights round their input."""

    def __init__(self, model):
        self.storages = {p.untyped_storage().data_ptr() for name, p in model.named_parameters()
                         if name.endswith(("_proj.weight", "experts.gate_up_proj", "experts.down_proj"))}
        self.calls = 0

    def __enter__(self):
        self.plain = F.linear

        def linear(x, w, bias=None):
            if w.untyped_storage().data_ptr() in self.storages:
                self.calls += 1
                x = fake(x)
            return self.plain(x, w, bias)

        F.linear = torch.nn.functional.linear = linear
        return self

    def __exit__(self, *_):
        F.linear = torch.nn.functional.linear = self.plain


@torch.no_grad()
def logits(config_path, values, rows, dtype, device, quantised):
    options = {"attn_implementation": "sdpa", "dtype": dtype}
    try:
        model = AutoModelForCausalLM.from_pretrained(config_path, experts_implementation="eager", **options)
    except (TypeError, ValueError):
        model = AutoModelForCausalLM.from_pretrained(config_path, **options)
    load_values(model, values)
    model = model.to(device).eval()
    k, layers = model.config.num_experts_per_tok, model.config.num_hidden_layers
    out, margins = [], []

    def run():
        for ids in rows:
            r = model(torch.tensor([ids], device=device), output_router_logits=True, use_cache=False)
            out.append(r.logits[0, -1].float().cpu())
            tops = [x.reshape(-1, x.shape[-1])[-1].float().topk(k + 1).values for x in r.router_logits]
            margins.append(min(float(t[k - 1] - t[k]) for t in tops))

    if quantised:
        with Quantised(model) as q:
            run()
        assert q.calls >= len(rows) * layers * 6, f"only {q.calls} linear layers were seen"  # q k v o and an expert's two
    else:
        run()
    return torch.stack(out), margins


def check(name, scale_type, config, args):
    print(name)
    plain = make(name + "-bf16", config, args.dir)
    path = os.path.join(args.dir, name)
    values = quantise_checkpoint(plain, path, scale_type)
    prompt_file = os.path.join(path, "prompts.jsonl")
    rows = prompts(config, prompt_file)
    if args.make_only:
        return True
    full, margins = logits(plain, values, rows, torch.float32, args.device, True)
    half, _ = logits(plain, values, rows, torch.bfloat16, args.device, True)
    exact, _ = logits(plain, values, rows, torch.float32, args.device, False)
    apart = torch.tensor([m < MARGIN for m in margins])
    print(f"  rounding inputs alone: rms {rms((full - exact)[~apart]):.5f} of logits of {rms(exact):.3f}")
    if args.engine is None:
        print(f"  transformers bf16 on top: rms {rms((half - full)[~apart]):.5f}, apart {int(apart.sum())} of {len(rows)}")
        return True
    runs = [run_engine(args.engine, path, prompt_file, [["--precision", "fp8"]]) for _ in range(2)]
    if None in runs:
        return False
    ours = runs[0][0][1]
    error, allowed = rms((ours - full)[~apart]), rms((half - full)[~apart])
    identical = runs[0][0][0] == runs[1][0][0]
    counted = [flips(x[~apart], full[~apart]) for x in (ours, half)]
    good = {"finite": bool(torch.isfinite(ours).all()), "rms": error <= 1.5 * allowed,
            "flips": counted[0][3] <= counted[0][4] + 3 * math.sqrt(counted[0][4]) + 1, "bits": identical}
    print(f"  rms error {error:.5f}, transformers bf16 {allowed:.5f} (ratio {error / allowed:.3f}, at most 1.5), "
          f"{int(apart.sum())} of {len(rows)} apart")
    for who, c in zip(("ours", "transformers bf16"), counted):
        print(f"  arg-max of {who}: {c[3]} of {int((~apart).sum())} differ, {c[4]:.1f} expected of noise; {c[2]} with a margin above 3x the error")
    print("  " + ", ".join(f"{k} {'ok' if v else 'FAILED'}" for k, v in good.items()))
    return all(good.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine")
    parser.add_argument("--dir", default="build/gpu/hf")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--make-only", action="store_true")
    parser.add_argument("--only")
    args = parser.parse_args()
    os.makedirs(args.dir, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(4)
    good = [check(name, *MODELS[name], args) for name in MODELS if args.only in (None, name)]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
