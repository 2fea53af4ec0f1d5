#!/usr/bin/env python3
"""Counts the parameters of Hugging Face models from their config.json alone, as an independent reference.

usage: hf_params.py CONFIG_DIR OUT.json

Every model is built by transformers on torch's meta device (no memory, no weights, no remote code), so the counts are
those of the reference implementation and share nothing with forerun's own arithmetic. Quantisation settings are
dropped: they change how a weight is stored, not how many there are. `auto_map` is dropped so that only classes of the
installed transformers are used. A config that transformers cannot build is kept with its error.
"""
import json
import os
import re
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

# A model type that has no class of its own in transformers, but whose architecture field names one.
TYPE_OF_ARCHITECTURE = {"DeepseekV3ForCausalLM": "deepseek_v3"}

ROUTED = re.compile(r"\.(experts)\.")
SHARED = re.compile(r"\.(shared_experts?|shared_mlp)\.")
ROUTER = re.compile(r"\.(gate|router)\.(weight|bias|e_score_correction_bias)$")
LAYER = re.compile(r"\.layers\.(\d+)\.(.*)$")


def load_config(path):
    raw = json.load(open(path))
    notes = []
    for key in ("auto_map", "quantization_config"):
        if raw.pop(key, None) is not None:
            notes.append(f"{key} dropped")
    kind = raw.pop("model_type")
    arch = (raw.get("architectures") or [None])[0]
    known = TYPE_OF_ARCHITECTURE.get(arch)
    if known and known != kind:
        notes.append(f"model_type {kind} built as {known}, the class its architectures field names")
        kind = known
    raw = {k: v for k, v in raw.items() if not k.startswith("_")}
    return AutoConfig.for_model(kind, **raw), notes


def count(path):
    config, notes = load_config(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    out = {
        "notes": notes, "class": type(model).__name__, "tied_embeddings": bool(config.tie_word_embeddings),
        "total": 0, "embedding": 0, "lm_head": 0, "final_norm": 0, "routed_experts": 0, "shared_experts": 0,
        "router": 0, "layers": [],
    }
    layers = {}
    tied_head = False
    names = set()
    for name, p in model.named_parameters():  # a tied weight is named once
        n = p.numel()
        names.add(name)
        out["total"] += n
        m = LAYER.search(name)
        if m:
            layer = layers.setdefault(int(m.group(1)), {"total": 0, "routed_experts": 0, "shared_experts": 0,
                                                        "router": 0, "attention": 0, "other": 0, "tensors": {}})
            layer["total"] += n
            if ROUTED.search(name):
                kind = "routed_experts"
            elif SHARED.search(name):
                kind = "shared_experts"
            elif ROUTER.search(name) or ".gate.wg." in name:
                kind = "router"
            elif "attn" in name and "norm" not in m.group(2).split(".")[0]:
                kind = "attention"
            else:
                kind = "other"
            layer[kind] += n
            if kind in out:
                out[kind] += n
            layer["tensors"][m.group(2)] = list(p.shape)
        elif "embed" in name:
            out["embedding"] += n
        elif name.startswith("lm_head"):
            out["lm_head"] += n
        else:
            out["final_norm"] += n
    tied_head = not any(n.startswith("lm_head") for n in names)
    out["lm_head_is_embedding"] = tied_head
    # Equal layers are listed once, with the range they cover.
    for i in sorted(layers):
        if out["layers"] and {k: v for k, v in out["layers"][-1].items() if k not in ("first", "last")} == layers[i]:
            out["layers"][-1]["last"] = i
        else:
            out["layers"].append({"first": i, "last": i, **layers[i]})
    return out


def main():
    folder, target = sys.argv[1], sys.argv[2]
    result = {"source": "tests/tools/hf_params.py", "transformers": transformers.__version__,
              "torch": torch.__version__, "models": {}}
    for file in sorted(os.listdir(folder)):
        if not file.endswith(".json"):
            continue
        try:
            result["models"][file] = count(os.path.join(folder, file))
        except Exception as e:  # kept, so that a gap is visible
            result["models"][file] = {"error": f"{type(e).__name__}: {e}"[:500]}
        got = result["models"][file]
        print(file, got.get("total", got.get("error")), flush=True)
    with open(target, "w") as f:
        json.dump(result, f, indent=1, sort_keys=True)
        f.write("\n")


main()
