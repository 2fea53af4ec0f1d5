#!/usr/bin/env python3
"""transformers on layers of Qwen3-235B's shape, random weights, in the regimes of `forerun run`: ms a layer.

    hf_layers.py [--layers 4] [--tokens 16384] [--seq 4096] [--sustained S]
"""
import argparse
import statistics
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

p = argparse.ArgumentParser()
p.add_argument("--layers", type=int, default=4)
p.add_argument("--tokens", type=int, default=16384)
p.add_argument("--seq", type=int, default=4096)
p.add_argument("--sustained", type=float, default=10)
a = p.parse_args()

config = Qwen3MoeConfig(
    hidden_size=4096, num_hidden_layers=a.layers, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
    num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536, norm_topk_prob=True, vocab_size=151936,
    rope_theta=1e6, max_position_embeddings=40960)
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    # as weights.c: tokens must stay distinct, or a deep random model routes all of them to one expert
    for key, w in model.named_parameters():
        if "embed" in key:
            w.data.normal_(0, 1)
        elif "o_proj" in key:
            w.data.normal_(0, 0.25 / a.layers / 8192**0.5)
        elif "down_proj" in key:
            w.data.normal_(0, 0.25 / a.layers / 1536**0.5)
    ids = torch.randint(0, 151936, (a.tokens // a.seq, a.seq))


@torch.no_grad()
def forward():
    return model(ids, use_cache=False, logits_to_keep=1)


def timed(n):
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    marks[0].record()
    for m in marks[1:]:
        forward()
        m.record()
    torch.cuda.synchronize()
    return [x.elapsed_time(y) for x, y in zip(marks, marks[1:])]


forward()
torch.cuda.synchronize()
time.sleep(1)
burst = statistics.median(timed(5)) / a.layers
end = time.time() + a.sustained
while time.time() < end:
    timed(5)
sustained = statistics.median(timed(10)) / a.layers
experts = getattr(model.config, "_experts_implementation", "?")
print(f"transformers {transformers.__version__} (experts {experts}, sdpa), {a.layers} layers, {a.tokens} tokens in {a.seq}: "
      f"burst {burst:.2f} ms a layer, sustained {sustained:.2f}")
