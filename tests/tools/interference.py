#!/usr/bin/env python3
"""What compute loses beside transfers, from the `slowdown` rows of a measured cost table.

    interference.py TABLE [RANKS]     TSV: a line a victim, aggressor, direction, regime and duty (RANKS: default a pair)
    interference.py TABLE --md        the same as Markdown, a row a victim and aggressor

A duty below 1: the transfers ran for this share of the time, in turns of some 10 ms; times are medians of the victim's
launches, so one of half a millisecond shows one side of its turns or the other.
"""
import sys

VICTIMS = ("gemm", "grouped", "attention", "memory")
AGGRESSORS = ("pull", "nccl", "h2d")
NAMES = {"pull": "copy-engine pulls", "nccl": "NCCL all-gather", "h2d": "host copies", "gemm": "dense product",
         "grouped": "grouped product", "attention": "attention", "memory": "memory-bound"}
COLUMNS = ("victim aggressor ways regime duty alone_us beside_us slower_pct p10_pct p90_pct mhz_alone mhz_beside watts_alone "
           "watts_beside capped rate_GBs rate_alone_GBs").split()


def rows(path, ranks):
    out = []
    for line in open(path):
        if not line.startswith("slowdown "):
            continue
        f = dict(x.split("=", 1) for x in line.split() if "=" in x)
        if int(f.get("ranks", 2)) != ranks:
            continue
        alone = float(f["alone"])
        number = lambda key, scale=1.0: f"{float(f[key]) * scale:.4g}" if key in f else "?"
        slower = lambda key: f"{100 * (float(f[key]) / alone - 1):.1f}" if key in f else "?"
        out.append({"victim": f["victim"], "aggressor": f["aggressor"], "ways": f.get("ways", "2"), "regime": f["regime"],
                    "duty": f.get("duty", "1"), "alone_us": f"{alone / 1e3:.1f}", "beside_us": number("beside", 1e-3),
                    "slower_pct": slower("beside"), "p10_pct": slower("p10"), "p90_pct": slower("p90"),
                    "mhz_alone": number("clock_alone"), "mhz_beside": number("clock_mhz"), "watts_alone": number("watts_alone"),
                    "watts_beside": number("watts"), "capped": number("capped"), "rate_GBs": number("rate", 1e-9),
                    "rate_alone_GBs": number("rate_alone", 1e-9)})
    key = lambda r: (VICTIMS.index(r["victim"]), AGGRESSORS.index(r["aggressor"]), -int(r["ways"]), r["regime"], float(r["duty"]))
    return sorted(out, key=key)


def markdown(every):
    print("| beside | victim | burst | 25 % | 50 % | 75 % | all the time, sustained | SM MHz, W: alone, beside | power limit named | GB/s beside, alone |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for a in AGGRESSORS:
        for v in VICTIMS:
            mine = {(r["regime"], float(r["duty"])): r for r in every if r["victim"] == v and r["aggressor"] == a and r["ways"] == "2"}
            cell = lambda regime, duty: f"+{mine[regime, duty]['slower_pct']}" if (regime, duty) in mine else ""
            full = mine.get(("sustained", 1.0))
            cells = [cell("burst", 1.0)] + [cell("sustained", d) for d in (0.25, 0.5, 0.75, 1.0)]
            said = ["", "", ""]
            if full:
                capped = "no" if full["capped"] in ("?", "0") else f"{100 * float(full['capped']):.0f} %"
                said = [f"{float(full['mhz_alone']):.0f}, {float(full['watts_alone']):.0f}; {float(full['mhz_beside']):.0f}, {float(full['watts_beside']):.0f}",
                        capped, f"{float(full['rate_GBs']):.0f}, {float(full['rate_alone_GBs']):.0f}"]
            print("| " + " | ".join([NAMES[a], NAMES[v]] + [c.replace("+-", "-") for c in cells] + said) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    table = rows(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else 2)
    if "--md" in sys.argv:
        markdown(table)
    else:
        print("\t".join(COLUMNS))
        for r in table:
            print("\t".join(r[c] for c in COLUMNS))
