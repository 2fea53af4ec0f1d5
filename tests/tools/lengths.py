#!/usr/bin/env python3
"""Throughput by sequence length and tokens a GPU: the traces that `bench_ranks.sh` (part lengths) runs, and their table.

    lengths.py trace SET               CSV of requests: single forwards, then streams of 8, each after a rest
    lengths.py budget SET              new tokens a GPU and forward
    lengths.py layers SET              layers that are run
    lengths.py table DIR [PEAK]        TSV of DIR/SET-STRATEGY.db (PEAK: FLOP/s of a GPU)

SET: 4k, 16k or 64k tokens a GPU and forward. All requests of a forward, or of a stream's 8, arrive at once; the budget
cuts a stream into forwards. `stream` is its time from the first start to the last end, over 8; `steady` from the first
end to the last, over 7: a full pipeline. Of a pipeline in 2 and in 4 micro-batches (ppM) the quicker one is shown.
"""
import glob
import sqlite3
import sys

K = 1024
TIMES, GPUS = 8, 2
STRATEGIES = ("dp", "asyncep", "ep", "tp", "pp")
LAYERS = {"4k": 4, "16k": 4, "64k": 2}
# tokens a GPU, length of a sequence, forwards, seconds that they may take
SETS = {
    "4k": [(4 * K, n, 1, 0.12) for n in (256, K, 4 * K)] + [(4 * K, n, TIMES, 0.35) for n in (256, K, 4 * K)],
    "16k": [(16 * K, n, 1, 0.22) for n in (256, K, 4 * K, 16 * K)]
    + [(16 * K, n, TIMES, 0.75 if n < 16 * K else 1.0) for n in (256, K, 4 * K, 16 * K)],
    "64k": [(64 * K, n, 1, 0.3 if n < 16 * K else 0.45 if n < 64 * K else 0.75) for n in (256, K, 4 * K, 16 * K, 64 * K)]
    + [(64 * K, 4 * K, TIMES, 1.4), (64 * K, 64 * K, TIMES, 3.4)],
}


def bursts(name):
    at, out = 0, []
    for t, n, times, s in SETS[name]:
        out.append((at, t, n, times))
        at += int(s * 1e3)
    return out + [(at, 0, 0, 0)]


def trace(name):
    lines = ["arrival_ms,prompt_tokens"]
    for at, t, n, times in bursts(name):
        lines += [f"{at},{n}"] * (times * t * GPUS // n if n else 0)
    return "\n".join(lines)


def budget(name):
    return max(t for t, _, _, _ in SETS[name])


def rows(path):
    columns = "unit, start_ns, end_ns, tokens, flops, compute_ns, exposed_comm_ns, wait_ns, bubble_ns, idle_ns"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as c:
            return c.execute(f"select {columns} from forwards order by start_ns").fetchall()
    except sqlite3.Error:
        return []


def measured(folder, variant):
    """{(tokens, length, forwards): (seconds, seconds in steady state, FLOPs, [compute, exposed, wait, bubble, idle], variant)}, of a forward"""
    out = {}
    for name in SETS:
        every, when = rows(f"{folder}/{name}-{variant}.db"), bursts(name)
        for (at, t, n, times), (until, _, _, _) in zip(when, when[1:]):
            mine = [r for r in every if at * 1000000 <= r[1] < until * 1000000]
            if sum(r[3] for r in mine) != times * t * GPUS:
                continue
            ends = sorted(r[2] for r in mine)
            per = len(mine) // times  # units, each with a forward of its own
            steady = (ends[-1] - max(ends[:per])) / (times - 1) if times > 1 else 0
            parts = [sum(r[5 + i] for r in mine) / len(mine) * 1e-6 for i in range(5)]
            whole = (ends[-1] - min(r[1] for r in mine)) / times
            out[t, n, times] = (whole * 1e-9, steady * 1e-9, sum(r[4] for r in mine) / times, parts, variant)
    return out


def best(folder, strategy):
    out = {}
    for path in sorted(glob.glob(f"{folder}/*-{strategy}*.db")):
        variant = path[:-3].rsplit("-", 1)[1]
        if variant.rstrip("0123456789") != strategy:
            continue
        for key, value in measured(folder, variant).items():
            if key not in out or value[0] < out[key][0]:
                out[key] = value
    return out


def table(folder, peak):
    names = ("single_ms single_tokens_s_gpu single_mfu stream_ms stream_tokens_s_gpu stream_mfu steady_ms steady_tokens_s_gpu steady_mfu "
             "compute_ms exposed_ms wait_ms bubble_ms idle_ms variants")
    print("\t".join(["tokens_per_gpu", "length", "strategy"] + names.split()))
    every = {s: best(folder, s) for s in STRATEGIES}
    shapes = dict.fromkeys((t, n) for name in SETS for t, n, _, _ in SETS[name])
    for t, n in shapes:
        for s in STRATEGIES:
            lone, many = every[s].get((t, n, 1)), every[s].get((t, n, TIMES))
            cell = [str(t), str(n), s]
            for seconds, of in ((lone and lone[0], lone), (many and many[0], many), (many and many[1], many)):
                cell += [f"{seconds * 1e3:.3f}", f"{t / seconds:.0f}", f"{of[2] / seconds / GPUS / peak:.4f}"] if seconds else ["?"] * 3
            if not many and not lone:
                continue
            names = [of[4] if of else "?" for of in (lone, many)]
            print("\t".join(cell + [f"{x:.3f}" for x in (many or lone)[3]] + [",".join(names)]))


if __name__ == "__main__":
    what, which = sys.argv[1:3] if len(sys.argv) > 2 else ("", "")
    if what == "trace" and which in SETS:
        print(trace(which))
    elif what == "budget" and which in SETS:
        print(budget(which))
    elif what == "layers" and which in SETS:
        print(LAYERS[which])
    elif what == "table":
        table(which, float(sys.argv[3]) if len(sys.argv) > 3 else 989.5e12)
    else:
        sys.exit(__doc__)
