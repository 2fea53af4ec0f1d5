#!/usr/bin/env python3
"""A checkpoint of any size in Qwen3-MoE's published layout (an expert a tensor), to measure loading with.

    make_checkpoint.py --config engine/builtin/models/qwen3-30b-a3b.json --layers 17 --shards 8 --dir DIR

Weights repeat one block of normal noise (deviation 0.02), norms are 1; shards are written side by side.
"""
import argparse
import json
import multiprocessing
import os
import random
import struct
import time

NOISE = 1 << 20  # bytes, repeated
BLOCK = 32 << 20  # bytes a write


def tensors(c):
    """(name, shape) of all tensors in the order of publication."""
    h, d, i = c["hidden_size"], c["head_dim"], c["moe_intermediate_size"]
    yield "model.embed_tokens.weight", [c["vocab_size"], h]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", [h]
        yield at + "post_attention_layernorm.weight", [h]
        for name, rows in (("q", c["num_attention_heads"]), ("k", c["num_key_value_heads"]), ("v", c["num_key_value_heads"])):
            yield at + f"self_attn.{name}_proj.weight", [rows * d, h]
        yield at + "self_attn.o_proj.weight", [h, c["num_attention_heads"] * d]
        yield at + "self_attn.q_norm.weight", [d]
        yield at + "self_attn.k_norm.weight", [d]
        yield at + "mlp.gate.weight", [c["num_experts"], h]
        for e in range(c["num_experts"]):
            for name, shape in (("gate", [i, h]), ("up", [i, h]), ("down", [h, i])):
                yield at + f"mlp.experts.{e}.{name}_proj.weight", shape
    yield "model.norm.weight", [h]
    yield "lm_head.weight", [c["vocab_size"], h]


def size(shape):
    n = 2
    for s in shape:
        n *= s
    return n


def bf16(values):
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def write(job):
    path, part = job
    rng = random.Random(1)
    noise = memoryview(bf16(rng.gauss(0, 0.02) for _ in range(NOISE // 2)) * (BLOCK // NOISE))
    ones = bf16([1.0]) * (1 << 16)
    header, at = {}, 0
    for name, shape in part:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in part:
            if "norm" in name:
                f.write(ones[: size(shape)])
                continue
            for begin in range(0, size(shape), BLOCK):
                f.write(noise[: min(BLOCK, size(shape) - begin)])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--config", required=True)
    p.add_argument("--dir", required=True)
    p.add_argument("--layers", type=int)
    p.add_argument("--shards", type=int, default=8)
    a = p.parse_args()
    with open(a.config) as f:
        config = json.load(f)
    config["num_hidden_layers"] = a.layers or config["num_hidden_layers"]
    os.makedirs(a.dir, exist_ok=True)
    everything = list(tensors(config))
    total = sum(size(s) for _, s in everything)
    parts, have = [[]], 0
    for t in everything:
        if have >= total * len(parts) / a.shards:
            parts.append([])
        parts[-1].append(t)
        have += size(t[1])
    names = [f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
    begin = time.time()
    with multiprocessing.Pool(min(len(parts), os.cpu_count())) as pool:
        pool.map(write, [(os.path.join(a.dir, n), part) for n, part in zip(names, parts)])
    where = {t[0]: n for n, part in zip(names, parts) for t in part}
    with open(os.path.join(a.dir, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": where}, f)
    with open(os.path.join(a.dir, "config.json"), "w") as f:
        json.dump(config, f)
    print(f"{total * 1e-9:.2f} GB in {len(parts)} shards, {time.time() - begin:.1f} s")


if __name__ == "__main__":
    main()
