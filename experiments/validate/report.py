#!/usr/bin/env python3
"""The committed predictions against what was measured, as they stood before the part was run.

    experiments/validate/report.py predictions-1.jsonl a:OUT_A b:OUT_B h:OUT_H [--jsonl results.jsonl]

OUT holds NAME.json of run.sh. Prints a Markdown table and the statistics of the set; --jsonl appends one line a run."""
import json
import os
import sys


def quantile(values, q):
    values = sorted(values)
    return values[max(0, min(len(values) - 1, -(-int(q * 1000) * len(values) // 1000) - 1))]


def main():
    args, keep = sys.argv[1:], None
    if "--jsonl" in args:
        at = args.index("--jsonl")
        keep = open(args[at + 1], "a", encoding="ascii")
        del args[at:at + 2]
    predicted = {(p["part"], p["name"]): p for p in map(json.loads, open(args[0], encoding="ascii"))}
    errors, inside, width = [], 0, 0.0
    print("| part | cell | predicted ms (interval) | measured ms | error | |\n|---|---|---|---|---|---|")
    for part, folder in (a.split(":", 1) for a in args[1:]):
        for (own, name), p in predicted.items():
            path = os.path.join(folder, name + ".json")
            if own != part or not os.path.exists(path):
                continue
            m = json.load(open(path, encoding="utf-8"))
            error = p["forward_s"] / m["forward_s"] - 1
            hit = p["low_s"] <= m["forward_s"] <= p["high_s"]
            errors.append(error)
            inside += hit
            width += (p["high_s"] - p["low_s"]) / 2 / p["forward_s"]
            print(f"| {part} | {name} | {1e3 * p['forward_s']:.2f} ({1e3 * p['low_s']:.1f} to {1e3 * p['high_s']:.1f}) | "
                  f"{1e3 * m['forward_s']:.2f} | {100 * error:+.1f} % | {'in' if hit else '**out**'} |")
            if keep:
                d = m.get("device", {})
                json.dump({"part": part, "name": name, "forward_s": m["forward_s"], "tokens_per_s": m["tokens_per_s"],
                           "mfu": m["mfu"], "ttft_s": m["ttft_s"], "parts": {k: m[k] for k in (
                               "compute_s", "exposed_comm_s", "wait_s", "bubble_s", "idle_s")},
                           "device": {k: d.get(k) for k in ("gpu", "driver", "sm_mhz", "watts", "power_capped", "host_late_s")},
                           "predicted": p}, keep)
                keep.write("\n")
    if errors:
        size = [abs(e) for e in errors]
        print(f"\n{len(errors)} runs: median absolute error {100 * quantile(size, .5):.1f} %, p95 {100 * quantile(size, .95):.1f} %, "
              f"worst {100 * max(size):.1f} %, bias {100 * sum(errors) / len(errors):+.1f} %; {inside} inside their interval, "
              f"half-width {100 * width / len(errors):.1f} % on average")


main()
