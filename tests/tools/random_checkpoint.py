#!/usr/bin/env python3
"""A checkpoint of random numbers for a Qwen3-MoE config.json: safetensors in bf16, written without any library but numpy.

    random_checkpoint.py CONFIG.json DIR [--stacked]

--stacked: experts as transformers 5 holds them (gate_up_proj, down_proj of all experts), else one by one. The numbers do
not depend on it.
"""
import json
import os
import shutil
import struct
import sys

import numpy as np

config, folder = json.load(open(sys.argv[1])), sys.argv[2]
stacked = "--stacked" in sys.argv
H, V, E, I = (config[k] for k in ("hidden_size", "vocab_size", "num_experts", "moe_intermediate_size"))
D, Q, K = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
random = np.random.default_rng(5)
tensors = {}


def add(name, *shape, scale=0.02, mean=0.0):
    x = (mean + scale * random.standard_normal(shape)).astype(np.float32).view(np.uint32)
    tensors[name] = ((x + 0x7FFF + ((x >> 16) & 1)) >> 16).astype("<u2")


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
    header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
    at += x.nbytes
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
os.makedirs(folder, exist_ok=True)
shutil.copy(sys.argv[1], os.path.join(folder, "config.json"))
with open(os.path.join(folder, "model.safetensors"), "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    for x in tensors.values():
        f.write(x.tobytes())
