#!/usr/bin/env python3
"""Four GPUs: what was measured beside what was predicted: the tables of README.md and the data of throughput.gp.

    experiments/large/compare.py DATA.dat predictions-1.jsonl predictions-1b.jsonl -- results-1.jsonl results-2.jsonl ...

    experiments/large/compare.py eight predictions-5.jsonl                the predictions for eight GPUs, as a table

A line of results holds the prediction that was committed before it ran; the first files have the oldest predictions. A cell that was
measured more than once counts with its last measurement."""
import json
import statistics
import sys

PEAK_LAYERS = 94  # of the whole model; cells have 12 (dp: 8)
GROUPS = (("sequences of 256", ("-256",)), ("4K tokens a GPU", ("-4k",)), ("16K tokens a GPU", ("-16k", "-16k-fcfs")), ("32K tokens a GPU", ("-32k",)),
          ("one sequence of 32K", ("-seq32k",)), ("16K in fp8", ("-16k-fp8",)), ("16K, skewed", ("-16k-skew",)), ("hot expert", ("-16k-hot",)),
          ("the knee", ("-knee", "-yield", "slices", "-8k", "streams", "settled")))


def quantile(values, q):
    values = sorted(values)
    return values[max(0, min(len(values) - 1, -(-int(q * 1000) * len(values) // 1000) - 1))]


def rate(name, tokens_per_s):
    """Tokens/s a GPU, as 94 layers would have it."""
    return tokens_per_s / 4 * (8 if name.startswith("dp-") else 12) / PEAK_LAYERS


def group_of(name):
    for title, ends in GROUPS[:-1]:
        if name.endswith(ends):
            return title
    return GROUPS[-1][0] if any(e in name for e in GROUPS[-1][1]) else "others"


def error(line):
    return line["predicted"]["forward_s"] / line["forward_s"] - 1


def statistics_of(title, lines):
    errors = {l["name"]: error(l) for l in lines}
    size = [abs(e) for e in errors.values()]
    if not size:
        return
    inside = sum(l["predicted"]["low_s"] <= l["forward_s"] <= l["predicted"]["high_s"] for l in lines)
    width = sum((l["predicted"]["high_s"] - l["predicted"]["low_s"]) / 2 / l["predicted"]["forward_s"] for l in lines) / len(lines)
    worst = max(errors, key=lambda n: abs(errors[n]))
    print(f"{title}: {len(size)} cells: median absolute error {100 * statistics.median(size):.1f} %, p95 {100 * quantile(size, .95):.1f} %, worst "
          f"{100 * max(size):.1f} % ({worst}), bias {100 * sum(errors.values()) / len(size):+.1f} %; {inside} inside, half-width {100 * width:.1f} %")


def ranking(lines, gap=0.03):
    """Pairs under one load whose measured rates differ by more than gap: how many are ordered alike."""
    alike, all_, wrong = 0, 0, []
    for i, a in enumerate(lines):
        for b in lines[i + 1:]:
            said = rate(a["name"], a["predicted"]["tokens_per_s"]) / rate(b["name"], b["predicted"]["tokens_per_s"])
            got = rate(a["name"], a["tokens_per_s"]) / rate(b["name"], b["tokens_per_s"])
            if max(got, 1 / got) <= 1 + gap:
                continue
            all_ += 1
            if (said > 1) == (got > 1):
                alike += 1
            else:
                wrong.append(f"{a['name']} / {b['name']}")
    return alike, all_, wrong


def eight(file):
    said = {p["name"]: p for p in map(json.loads, open(file, encoding="ascii")) if p["part"] == "eight"}
    kinds = ("asyncep", "dwdp", "ep", "tp", "pp", "asyncep-nccl")
    print("| tokens a GPU, sequences | " + " | ".join(kinds) + " | asyncep / ep, tp, pp |\n|" + "---|" * (len(kinds) + 2))
    for end, title in (("4k", "4K of 4K"), ("16k", "16K of 4K"), ("32k", "32K of 4K"), ("256", "16K of 256"), ("seq32k", "32K of 32K"), ("16k-fp8", "16K of 4K, fp8"),
                       ("16k-skew", "16K of 4K, default skew"), ("16k-hot", "16K of 4K, a hot expert (4 x the mean)")):
        cells = [said.get(f"{k}-{end}") for k in kinds]
        text = [f"{p['tokens_per_s'] / 8 * 12 / PEAK_LAYERS:,.0f} ±{50 * (p['high_s'] - p['low_s']) / p['forward_s']:.0f} %" if p else "" for p in cells]
        ratios = [f"{p['forward_s'] / cells[0]['forward_s']:.2f}" if p else "-" for p in cells[2:5]]
        print(f"| {title} | {' | '.join(text)} | {', '.join(ratios)} |")


def main():
    if sys.argv[1] == "eight":
        return eight(sys.argv[2])
    data, cut = sys.argv[1], sys.argv.index("--")
    oldest, last, rounds = {}, {}, {}
    for p in (json.loads(l) for f in sys.argv[2:cut] for l in open(f, encoding="ascii")):
        if p["part"].startswith("four"):
            oldest.setdefault(p["name"], p)
    for f in sys.argv[cut + 1:]:
        lines = [l for l in map(json.loads, open(f, encoding="ascii")) if l["part"].startswith("four") and l["predicted"]]
        statistics_of(f.rsplit("/", 1)[-1], lines)
        for l in lines:
            rounds.setdefault(l["name"], []).append(l)
            last[l["name"]] = l
    first = [{**l, "predicted": oldest[n]} for n, l in last.items() if n in oldest]
    statistics_of("against the oldest predictions", first)
    statistics_of("every cell, last measurement", list(last.values()))
    groups = {}
    for n, l in last.items():
        groups.setdefault(group_of(n), []).append(l)
    order = [t for t, _ in GROUPS] + ["others"]
    print("\n| | cell | measured ms | tokens/s a GPU, as 94 layers | MFU | predicted | error | |\n|---|---|---|---|---|---|---|---|")
    for title in order:
        for l in sorted(groups.get(title, ()), key=lambda l: -rate(l["name"], l["tokens_per_s"])):
            p = l["predicted"]
            hit = "" if p["low_s"] <= l["forward_s"] <= p["high_s"] else "out"
            print(f"| {title} | {l['name']} | {1e3 * l['forward_s']:.2f} | {rate(l['name'], l['tokens_per_s']):,.0f} | {100 * l['mfu']:.1f} % | "
                  f"{1e3 * p['forward_s']:.2f} | {100 * error(l):+.1f} % | {hit} |")
            title = ""
    print("\nmeasured more than once:")
    for n, l in rounds.items():
        if len(l) > 1:
            ms = [1e3 * x["forward_s"] for x in l]
            print(f"  {n}: {', '.join(f'{m:.2f}' for m in ms)} ms: {100 * (max(ms) / min(ms) - 1):.1f} %")
    alike = all_ = 0
    for title in order[:-2]:
        a, b, wrong = ranking([l for l in groups.get(title, []) if not l["name"].endswith("-fcfs")])
        alike, all_ = alike + a, all_ + b
        print(f"ranking, {title}: {a} of {b} pairs" + (f"; not {', '.join(wrong)}" if wrong else ""))
    print(f"ranking: {alike} of {all_} pairs with a measured gap above 3 %")
    print("\n| | asyncep / ep | / tp | / pp | predicted |\n|---|---|---|---|---|")
    for load in ("-256", "-4k", "-16k", "-32k", "-seq32k", "-16k-fp8", "-16k-skew", "-16k-hot"):
        own = last.get("asyncep" + load)
        if not own:
            continue
        others = [last.get(o + load) for o in ("ep", "tp", "pp")]
        got = [f"{o['forward_s'] / own['forward_s']:.2f}" if o else "" for o in others]
        said = [f"{o['predicted']['forward_s'] / own['predicted']['forward_s']:.2f}" if o else "-" for o in others]
        print(f"| {load[1:]} | {' | '.join(got)} | {' / '.join(said)} |")
    with open(data, "w", encoding="ascii") as f:
        x, panel = 0.0, -1
        for number, title in enumerate(order):
            members = sorted(groups.get(title, ()), key=lambda l: -rate(l["name"], l["tokens_per_s"]))
            if panel != (number >= 5):
                x, panel = 0.0, int(number >= 5)
            for k, l in enumerate(members):
                p, r, name = l["predicted"], rate(l["name"], l["predicted"]["tokens_per_s"]) / 1e3, l["name"]
                for end in GROUPS[number][1] if number < len(GROUPS) - 1 else ():
                    name = name.removesuffix(end)
                f.write("\t".join((str(panel), f"{x:.1f}", name, title if k == 0 else "", f"{rate(l['name'], l['tokens_per_s']) / 1e3:.3f}", f"{r:.3f}",
                                   f"{r * p['forward_s'] / p['high_s']:.3f}", f"{r * p['forward_s'] / p['low_s']:.3f}")) + "\n")
                x += 1
            x += 1 if members else 0


main()
