#!/usr/bin/env python3
"""Throughput by sequence length and tokens a GPU: the shapes that `bench_ranks.sh` (part lengths) runs, and their table.

    lengths.py seqs                     --seqs of a stream: a lead, then 8 forwards of every shape
    lengths.py forwards                 how many forwards that is
    lengths.py trace                    CSV of single forwards, each after a rest
    lengths.py table DIR [PEAK]    TSV of DIR/stream-STRATEGY.db and DIR/single-STRATEGY.db (PEAK: FLOP/s of a GPU)

A block of the stream lasts from the last end of the block before, of all ranks, to its own: a full pipeline stays full.
"""
import sqlite3
import sys

K = 1024
# tokens a GPU, length of a sequence, seconds that a single forward may take
SHAPES = [(4 * K, n, 0.2) for n in (256, K, 4 * K)] + [(16 * K, n, 0.35) for n in (256, K, 4 * K, 16 * K)]
SHAPES += [(64 * K, 4 * K, 0.8), (64 * K, 64 * K, 1.8)]
TIMES, GPUS = 8, 2
STRATEGIES = ("dp", "asyncep", "ep", "tp", "pp")


def one(tokens, length):
    return f"{length}x{tokens * GPUS // length}"


def blocks():
    return [SHAPES[0]] + SHAPES


def seqs():
    return ";".join(";".join([one(t, n)] * TIMES) for t, n, _ in blocks())


def bursts():
    at, out = 0, []
    for t, n, s in SHAPES:
        for _ in range(2 if t <= 16 * K else 1):
            out.append((at, t, n))
            at += int(s * 1e3)
    return out + [(at, 0, 0)]


def trace():
    lines = ["arrival_ms,prompt_tokens"]
    for at, t, n in bursts():
        lines += [f"{at},{n}"] * (t * GPUS // n if n else 0)
    return "\n".join(lines)


def rows(path):
    columns = "unit, start_ns, end_ns, tokens, flops, compute_ns, exposed_comm_ns, wait_ns, bubble_ns, idle_ns"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as c:
            return c.execute(f"select {columns} from forwards order by unit, forward").fetchall()
    except sqlite3.Error:
        return []


def stream(path):
    """{(tokens, length): (seconds a forward, FLOPs a forward of all GPUs, [compute, exposed, wait, bubble, idle] ns)}"""
    units, out, before = {}, {}, 0
    for r in rows(path):
        units.setdefault(r[0], []).append(r)
    for b, (t, n, _) in enumerate(blocks()):
        block = [r for u in units.values() for r in u[b * TIMES : (b + 1) * TIMES]]
        if sum(r[3] for r in block) != TIMES * t * GPUS:
            continue
        end = max(r[2] for r in block)
        parts = [sum(r[5 + i] for r in block) / len(block) for i in range(5)]
        out[t, n] = ((end - before) * 1e-9 / TIMES, sum(r[4] for r in block) / TIMES, parts)
        before = end
    return out


def single(path):
    out, every, when = {}, rows(path), bursts()
    for (at, t, n), (until, _, _) in zip(when, when[1:]):
        mine = [r for r in every if at * 1000000 <= r[1] < until * 1000000]
        if sum(r[3] for r in mine) == t * GPUS:
            out[t, n] = (max(r[2] for r in mine) - min(r[1] for r in mine)) * 1e-9
    return out


def table(folder, peak):
    print("tokens_per_gpu\tlength\tstrategy\tsingle_ms\tsingle_tokens_s_gpu\tsingle_mfu\tstream_ms\tstream_tokens_s_gpu\tstream_mfu"
          "\tcompute_ms\texposed_ms\twait_ms\tbubble_ms\tidle_ms")
    both = {s: (stream(f"{folder}/stream-{s}.db"), single(f"{folder}/single-{s}.db")) for s in STRATEGIES}
    for t, n, _ in SHAPES:
        for s in STRATEGIES:
            (many, lone), flops = (both[s][0].get((t, n)), both[s][1].get((t, n))), None
            for k in STRATEGIES:
                flops = flops or both[k][0].get((t, n), (0, None))[1]
            cell = [str(t), str(n), s]
            for seconds in (lone, many and many[0]):
                cell += [f"{seconds * 1e3:.3f}", f"{t / seconds:.0f}", f"{flops / seconds / GPUS / peak:.4f}" if flops else "?"] if seconds else ["?"] * 3
            print("\t".join(cell + ([f"{x * 1e-6:.3f}" for x in many[2]] if many else ["?"] * 5)))


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "seqs":
        print(seqs())
    elif what == "forwards":
        print(len(blocks()) * TIMES)
    elif what == "trace":
        print(trace())
    elif what == "table" and len(sys.argv) > 2:
        table(sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 989.5e12)
    else:
        sys.exit(__doc__)
