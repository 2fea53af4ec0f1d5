#!/usr/bin/env python3
"""Predictions beside what was measured on four GPUs: the tables of README.md and the data of throughput.gp.

    experiments/large/compare.py OUT predictions-1.jsonl [predictions-1b.jsonl predictions-2.jsonl ...]

OUT holds NAME.json of run.sh. A cell's first line in an earlier file is its oldest prediction, in the last file its newest."""
import json
import math
import os
import statistics
import sys

PEAK = {"bf16": 989.5e12, "fp8": 1979e12}


def quantile(values, q):
    values = sorted(values)
    return values[max(0, min(len(values) - 1, math.ceil(q * len(values)) - 1))]


def rate(name, r):
    """Thousand tokens/s a GPU x layers."""
    return r["tokens_per_s"] / 4 * (8 if name.startswith("dp-") else 12) / 1e3


def ranking(names, said, got, gap):
    """Pairs whose measured rates differ by more than gap: how many are ordered alike."""
    alike, all_, wrong = 0, 0, []
    for i, a in enumerate(names):
        for b in names[i + 1:]:
            if abs(got[a] / got[b] - 1) <= gap and abs(got[b] / got[a] - 1) <= gap:
                continue
            all_ += 1
            if (said[a] > said[b]) == (got[a] > got[b]):
                alike += 1
            else:
                wrong.append(f"{a} / {b}")
    return alike, all_, wrong


def main():
    out, files = sys.argv[1], sys.argv[2:]
    first, last, order = {}, {}, []
    for f in files:
        for p in map(json.loads, open(f, encoding="ascii")):
            if p["part"] != "four":
                continue
            if p["name"] not in first:
                first[p["name"]] = p
                order.append(p["name"])
            last[p["name"]] = p
    got = {n: json.load(open(os.path.join(out, n + ".json"), encoding="utf-8")) for n in order
           if os.path.exists(os.path.join(out, n + ".json"))}
    names = [n for n in order if n in got]
    for title, said in (("oldest prediction", first), ("newest prediction", last)):
        errors, inside, width = {}, 0, 0.0
        for n in names:
            errors[n] = said[n]["forward_s"] / got[n]["forward_s"] - 1
            inside += said[n]["low_s"] <= got[n]["forward_s"] <= said[n]["high_s"]
            width += (said[n]["high_s"] - said[n]["low_s"]) / 2 / said[n]["forward_s"]
        size = [abs(e) for e in errors.values()]
        if size:
            print(f"{title}: {len(size)} cells: median absolute error {100 * statistics.median(size):.1f} %, p95 {100 * quantile(size, .95):.1f} %, worst "
                  f"{100 * max(size):.1f} % ({max(errors, key=lambda n: abs(errors[n]))}), bias {100 * sum(errors.values()) / len(size):+.1f} %; "
                  f"{inside} inside, half-width {100 * width / len(size):.1f} %")
    print("\n| cell | measured ms | k tokens/s a GPU x layers | MFU | oldest prediction | error | newest | error |\n|---|---|---|---|---|---|---|---|")
    for n in names:
        m, a, b = got[n], first[n], last[n]

        def cell(p):
            e, hit = p["forward_s"] / m["forward_s"] - 1, p["low_s"] <= m["forward_s"] <= p["high_s"]
            return f"{1e3 * p['forward_s']:.2f} | {100 * e:+.1f} %{'' if hit else ' **out**'}"
        print(f"| {n} | {1e3 * m['forward_s']:.2f} | {rate(n, m):,.0f} | {100 * m['mfu']:.1f} % | {cell(a)} | {cell(b)} |")
    group = {}
    for n in names:
        load = next((k for k in ("-16k-fp8", "-16k-skew", "-seq32k", "-256", "-32k", "-16k", "-4k") if n.endswith(k)), None)
        if load:
            group.setdefault(load, []).append(n)
    print()
    alike = all_ = 0
    for load, members in group.items():
        said, r = {n: rate(n, last[n]) for n in members}, {n: rate(n, got[n]) for n in members}
        a, b, wrong = ranking(members, said, r, 0.03)
        alike, all_ = alike + a, all_ + b
        print(f"ranking {load}: {a} of {b} pairs" + (f"; not {', '.join(wrong)}" if wrong else ""))
    print(f"ranking, all loads: {alike} of {all_} pairs with a measured gap above 3 %")
    print("\n| length | asyncep / ep | asyncep / tp | asyncep / pp | predicted |\n|---|---|---|---|---|")
    for load in ("-256", "-16k", "-32k", "-seq32k"):
        if "asyncep" + load not in got:
            continue
        own = [f"{rate('asyncep' + load, got['asyncep' + load]) / rate(o + load, got[o + load]):.2f}" if o + load in got else "-"
               for o in ("ep", "tp", "pp")]
        was = [f"{rate('x', last['asyncep' + load]) / rate('x', last[o + load]):.2f}" for o in ("ep", "tp", "pp")]
        print(f"| {load[1:]} | {' | '.join(own)} | {' '.join(was)} |")
    with open(os.path.join(out, "throughput.dat"), "w", encoding="ascii") as f:
        for n in names:
            p, low, high = last[n], 0, 0
            low, high = (p["forward_s"] / p["high_s"], p["forward_s"] / p["low_s"])
            f.write(f'"{n}" {rate(n, got[n]):.1f} {rate(n, p):.1f} {rate(n, p) * low:.1f} {rate(n, p) * high:.1f}\n')


main()
