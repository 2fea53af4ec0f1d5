#!/usr/bin/env python3
"""A checkpoint of random numbers for a Qwen3-MoE config.json: safetensors in bf16, written without any library but numpy.

    random_checkpoint.py CONFIG.json DIR [--stacked | --fp8]

--stacked: experts as transformers 5 holds them (gate_up_proj, down_proj of all experts), else one by one. The numbers do
not depend on it. --fp8: linear weights in e4m3 with a scale for each block of 128 x 128 (NAME_scale_inv), as Qwen's FP8
models have them, fp32 in even layers and bf16 in odd ones (both are published).
"""
import json
import os
import struct
import sys

import numpy as np

config, folder = json.load(open(sys.argv[1])), sys.argv[2]
stacked, fp8 = "--stacked" in sys.argv, "--fp8" in sys.argv
H, V, E, I = (config[k] for k in ("hidden_size", "vocab_size", "num_experts", "moe_intermediate_size"))
D, Q, K = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
random = np.random.default_rng(5)
tensors = {}


def bf16(x):
    x = x.astype(np.float32).view(np.uint32)
    return ((x + 0x7FFF + ((x >> 16) & 1)) >> 16).astype("<u2")


def e4m3(x):
    """Bits of the nearest e4m3 (ties to even) of numbers up to 448 in magnitude."""
    a = np.abs(x)
    exponent = np.maximum(np.frexp(a)[1] - 1, -6)
    steps = np.rint(np.ldexp(a, 3 - exponent)).astype(np.int32)  # 8 .. 16 of the binade's; below 2^-6 fewer than 8
    return (steps + 8 * (exponent + 6) + 128 * (x < 0)).astype(np.uint8)


def quantise(name, x):
    rows, columns = x.shape
    wide = np.zeros((-(-rows // 128) * 128, -(-columns // 128) * 128), np.float32)
    wide[:rows, :columns] = x
    blocks = wide.reshape(wide.shape[0] // 128, 128, -1, 128)
    scale = (np.abs(blocks).max((1, 3)) / 448).astype(np.float32)
    if int(name.split(".")[2]) % 2:
        tensors[name + "_scale_inv"] = bf16(scale)
        scale = (tensors[name + "_scale_inv"].astype(np.uint32) << 16).view(np.float32)
    else:
        tensors[name + "_scale_inv"] = scale
    tensors[name] = e4m3(np.clip(blocks / scale[:, None, :, None], -448, 448)).reshape(wide.shape)[:rows, :columns]


def add(name, *shape, scale=0.02, mean=0.0):
    x = mean + scale * random.standard_normal(shape)
    if fp8 and name.endswith("_proj.weight"):
        quantise(name, x.astype(np.float32))
    else:
        tensors[name] = bf16(x)


add("model.embed_tokens.weight", V, H, scale=1.0)
add("model.norm.weight", H, scale=0.1, mean=1.0)
add("lm_head.weight", V, H)
for i in range(config["num_hidden_layers"]):
    p = f"model.layers.{i}."
    for n in ("input_layernorm", "post_attention_layernorm"):
        add(p + n + ".weight", H, scale=0.1, mean=1.0)
    for n, rows in (("q_proj", Q * D), ("k_proj", K * D), ("v_proj", K * D)):
        add(p + f"self_attn.{n}.weight", rows, H)
    add(p + "self_attn.o_proj.weight", H, Q * D)
    for n in ("q_norm", "k_norm"):
        add(p + f"self_attn.{n}.weight", D, scale=0.1, mean=1.0)
    add(p + "mlp.gate.weight", E, H)
    for e in range(E):
        for n, rows, columns in (("gate_proj", I, H), ("up_proj", I, H), ("down_proj", H, I)):
            add(p + f"mlp.experts.{e}.{n}.weight", rows, columns)
    if stacked:
        take = [[tensors.pop(p + f"mlp.experts.{e}.{n}.weight") for e in range(E)] for n in ("gate_proj", "up_proj", "down_proj")]
        tensors[p + "mlp.experts.gate_up_proj"] = np.stack([np.concatenate(x) for x in zip(take[0], take[1])])
        tensors[p + "mlp.experts.down_proj"] = np.stack(take[2])
header, at = {}, 0
for name, x in tensors.items():
    header[name] = {"dtype": {1: "F8_E4M3", 2: "BF16", 4: "F32"}[x.itemsize], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
    at += x.nbytes
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
os.makedirs(folder, exist_ok=True)
if fp8:
    config["quantization_config"] = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump(config, f, indent=1)
with open(os.path.join(folder, "model.safetensors"), "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    for x in tensors.values():
        f.write(x.tobytes())
