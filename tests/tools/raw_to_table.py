#!/usr/bin/env python3
"""Makes a cost table (kernels/measured/FORMAT.md) from the rows that bench_kernels and bench_links write.

    tests/tools/raw_to_table.py kernels/measured/raw/h200-2026-11-22.txt kernels/measured/raw/h200x2-2026-11-22.txt \
        tests/data/seeds/h200.txt kernels/measured/raw/h200-tiles-2026-11-22.txt [RAW OF bench_fp8] \
        >kernels/measured/h200.txt

The third file is an older, seeded table: its header gives the ceilings, and of its rows those stay, marked
provenance=seeded, that neither bench measures (SEEDS below). Whole layers (layer, layer_*) are never used: they
judge the cost model, they do not feed it.

Which reading is the burst: a compute-bound kernel draws more than the power limit allows, and the limit sets in some
50 ms into a burst, so a median of 0.12 s of launches lies on either side of it (645, 723 and 759 TFLOP/s for one
kernel in three turns), while the first decile repeats within 1 %. A table's burst is the full clock, so for products
and attention it is the least first decile of all turns of a shape; p90 stays and makes the interval. Sustained rows
and everything bound by memory or latency are medians. Rows that were in the limit from their first launch on are left
out: those whose rate falls more than HOT below that of a smaller shape of their series, which full-clock physics does
not explain. They are listed at the end of the table.

Transfers (bench_links, two GPUs): see links() and slowdowns().
"""
import bisect
import re
import sys

HOT = 0.04  # three times what first deciles of cool turns differ by, and less than what the limit takes (10-20 %)

# what the benches don't give: FP8, latent attention, a memory-bound kernel of no name
SEEDS = re.compile(r"^memory |precision=fp8|head_dim=192")

MASK = (1 << 64) - 1


class Random:
    """splitmix64, as in tests/gpu/gpu.h"""

    def __init__(self, seed):
        self.s = seed

    def next(self):
        self.s = (self.s + 0x9E3779B97F4A7C15) & MASK
        z = self.s
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def uniform(self):
        return (self.next() >> 11) * 2.0**-53

    def below(self, n):
        return self.next() % n


def expert_rows(experts, mean, pattern):
    """rows= of make_offsets in tests/gpu/bench_kernels.cu; the power law is drawn again"""
    if pattern == "equal":
        return f"{mean}x{experts}"
    if pattern == "multinomial":  # even routing: the format's own word for its spread
        return f"random:{mean * experts}/{experts}"
    share, low, high = [], 0.0, 3.0  # (i + 1)^-s, s such that the hottest expert has six times the mean
    for _ in range(60):
        s = (low + high) / 2
        total = sum((i + 1) ** -s for i in range(experts))
        share = [(i + 1) ** -s / total for i in range(experts)]
        low, high = (s, high) if share[0] * experts < 6 else (low, s)
    r = Random(3)
    for i in range(experts - 1, 0, -1):
        j = r.below(i + 1)
        share[i], share[j] = share[j], share[i]
    r, up, total = Random(11), [], 0.0
    for x in share:
        total += x
        up.append(total)
    count = [0] * experts
    for _ in range(experts * mean):
        count[min(bisect.bisect_right(up, r.uniform() * total), experts - 1)] += 1
    return ",".join(map(str, count))


def fields(shape):
    """E=128,N=3072,multinomial -> {E: 128, N: 3072}, [multinomial]"""
    parts = shape.split(":", 1)[-1].split(",")
    return dict(p.split("=") for p in parts if "=" in p), [p for p in parts if "=" not in p]


def grouped(op, shape):
    f, words = fields(shape)
    e, n, k, mean = (int(f[x]) for x in ("E", "N", "K", "rows"))
    if op != ("grouped_cluster_skew" if mean >= 512 else "grouped"):
        return None  # not what fr_k_grouped_default takes
    name = {"up": "expert_up", "do": "expert_down", "pl": "grouped"}[shape[:2]]
    return f"{name} precision=bf16 rows={expert_rows(e, mean, words[0])} n={n} k={k}", (name, n, k, words[0])


def fp8(op, shape):
    """Products of bench_fp8; its memory-bound kernels move other bytes for a row than bf16's and are left out."""
    f, words = fields(shape)
    n, k = int(f["N"]), int(f["K"])
    if op == "gemm_fp8":
        row, series = gemm("gemm", shape)
        return row.replace("bf16", "fp8"), ("fp8",) + series
    if op != ("grouped_fp8_cluster" if int(f["rows"]) >= 512 else "grouped_fp8"):
        return None  # not what fr_k_grouped_fp8_default takes
    name = {"up": "expert_up", "do": "expert_down"}[shape[:2]]
    rows = expert_rows(int(f["E"]), int(f["rows"]), words[0])
    return f"{name} precision=fp8 rows={rows} n={n} k={k}", ("fp8", name, n, k, words[0])


def gemm(op, shape):
    """The output projection was measured with its residual added (2 % more bytes), but for one shape."""
    f, _ = fields(shape)
    m, n, k = (int(f[x]) for x in "MNK")
    name = {(9216, 4096): "gemm_qkv", (5120, 2048): "gemm_qkv", (4096, 8192): "gemm_o", (2048, 4096): "gemm_o"}
    kind = "gemm_router" if op == "gemm_f32" else name.get((n, k), "gemm")
    series = None if op == "gemm_f32" else ("gemm", n, k)  # the router's reads its input at memory speed
    return f"{kind} precision=bf16 m={m} n={n} k={k}", series


def attention(op, shape):
    """The graph that engine/cuda takes: without length masks for two and more sequences of up to 1,024, else packed."""
    f, _ = fields(shape)
    b, length = int(f["b"]), int(f["len"])
    short = b > 1 and length <= 1024
    if op == "attention_uniform" and not short:
        return None
    q, kv = f["heads"].split("/")
    row = f"attention precision=bf16 seqs={length}+0x{b} heads={q} kv_heads={kv} head_dim={f['D']}"
    if short and op == "attention_packed":  # as batches of varied lengths run
        return row + " packed=1", ("packed", q, b * length)
    return row, ("attention", q, b * length if b > 1 else 1)


def memory(op, shape):
    """HBM bytes as engine/strategy/layer.c counts them, which is what a cost is asked with."""
    f, _ = fields(shape)
    t = int(f.get("T", f.get("rows", 0)))
    h, k = int(f.get("H", 0)), int(f.get("k", 0))
    if op == "embedding":
        return f"embed m={t} n={h} bytes={t * (4 + 4 * h)}", None
    if op in ("rmsnorm", "add_rmsnorm"):  # with the residual: delta in, stream in and out, rows out
        return f"norm m={t} n={h} bytes={t * h * (8 if op[0] == 'a' else 4)}", None
    if op == "qk_norm_rope":
        q, kv = map(int, f["heads"].split("/"))
        d = int(f["D"])
        return f"rope m={t} n={q * d} bytes={4 * t * (q + kv) * d}", None
    if op == "router":
        e = int(f["E"])
        return f"topk m={t} n={e} bytes={t * (4 * e + 8 * k)}", None
    if op == "route":
        e = int(f["E"])
        return f"sort m={t * k} n={e} bytes={12 * t * k + 8 * e}", None
    if op == "permute":  # a row in for each row out, though ours reads each token's row once
        return f"permute m={t * k} n={h} bytes={4 * h * t * k}", None
    if op == "combine":  # k rows, the residual in and out; the norm behind it is an op of its own in a plan
        return f"combine m={t} n={h} bytes={2 * h * t * (k + 2)}", None
    if op == "swiglu":
        i = int(f["I"])
        return f"swiglu m={t} n={i} bytes={6 * t * i}", None
    return None


def other(op, shape):
    f, _ = fields(shape)
    if op == "launch_host":
        return "launch m=1", None
    if op == "launch_graph":  # one block, back to back: the shortest that a kernel takes on the device
        return "kernel_floor", None
    name = {"copy_h2d": "h2d", "copy_d2h": "d2h", "copy_d2d": "drain"}.get(op)
    return (f"{name} bytes={f['bytes']}", None) if name else None


def convert(op, shape):
    """-> (row up to the regime, series for the power rule or None), or None: not used"""
    if op.startswith(("layer", "quantise", "rmsnorm_fp8", "add_rmsnorm_fp8", "permute_fp8", "dense_own")) or op.startswith("grouped_gather") or op.endswith("loop"):
        return None
    if op.startswith("grouped_fp8") or op == "gemm_fp8":
        return fp8(op, shape)
    if op.startswith("grouped"):
        return grouped(op, shape)
    if op.startswith("gemm"):
        return gemm(op, shape)
    if op.startswith("attention"):
        return attention(op, shape)
    return other(op, shape) or memory(op, shape)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def links(raw):
    """Pulls, collectives and read-backs.

    A pull is a row of copies on two streams over their number: between copies of one stream the bench has an event,
    whose reading steps by 9 us; the median of that is p90, what a lone small pull may take. ways=2: the mean of both
    GPUs. An all-to-all is what goes to the peer (exchange), without the share that stays. A receive takes what the
    send takes. The read-back is what the engine does: copy, event, poll.
    """
    pulls, out = {}, []
    for op, shape, regime, *numbers in raw:
        f, _ = fields(shape)
        if op == "pull":
            key = (int(f["bytes"]), int(f["ways"]))
            pulls.setdefault(key, {}).setdefault(int(f["inflight"]), []).append(numbers)
    for (size, ways), by in sorted(pulls.items(), key=lambda x: (x[0][1], x[0][0])):
        ns, p10 = (mean(x[i] for x in by[2]) for i in (0, 1))
        p90 = max(mean(x[0] for x in by[1]), mean(x[2] for x in by[2]))
        out.append(f"pull bytes={size} ways={ways} regime=burst ns={ns:.0f} p10={min(p10, ns):.0f} p90={p90:.0f}")
    names = {"allreduce": ["allreduce"], "allgather": ["allgather"], "reducescatter": ["reducescatter"],
             "exchange": ["alltoall"], "send": ["send", "recv"]}
    for op, shape, regime, *numbers in raw:
        f, _ = fields(shape)
        for name in names.get(op, []):
            out.append(f"{name} bytes={f['bytes']} ranks={f['ranks']} transport=nccl regime={regime} "
                       f"ns={numbers[0]:.0f} p10={numbers[1]:.0f} p90={numbers[2]:.0f}")
        if op == "readback" and shape == "poll":
            out.append(f"readback regime={regime} ns={numbers[0]:.0f} p10={numbers[1]:.0f} p90={numbers[2]:.0f}")
    return out


def slowdowns(raw):
    """Interference: medians, of a burst's turns the lesser, the mean of both GPUs.

    Pulls and host copies keep their rate beside compute. An all-gather does not (its kernel waits for SMs), and the
    simulator lets it take what it takes alone; so overlap is the time that the bytes it moved meanwhile take alone,
    by which the compute lost for each byte is the measured one.
    """
    turns, alone_rate, out = {}, 0.0, []
    for op, shape, regime, *numbers in raw:
        f, words = fields(shape)
        if op == "allgather" and f["bytes"] == "1073741824":
            alone_rate = 1e9 * 2**29 / numbers[0]
        if op == "beside":
            if words or "starved" in f:
                sys.exit(f"{shape}: the transfer ended first")
            key = (f["victim"], f["aggressor"], regime)
            turns.setdefault(key, {}).setdefault(f["rank"], []).append(numbers)
    best = {k: [min(t) for _, t in sorted(by.items())] for k, by in turns.items()}
    for regime in ("burst", "sustained"):  # the memory-bound victim is the residual + norm of 65,536 rows of 4,096
        ns, p10, p90, mhz, watts = (mean(x[i] for x in best["memory", "none", regime]) for i in range(5))
        clock = f" clock_mhz={mhz:.0f} watts={watts:.0f}" if regime == "sustained" else ""
        out.append(f"norm m=65536 n=4096 bytes={65536 * 4096 * 8} regime={regime} ns={ns:.0f} p10={p10:.0f} "
                   f"p90={p90:.0f}{clock}")
    for regime in ("burst", "sustained"):
        for aggressor in ("pull", "nccl", "h2d"):
            for victim in ("gemm", "grouped", "attention", "memory"):
                a, b = (best[victim, x, regime] for x in ("none", aggressor))
                alone, beside, rate = mean(x[0] for x in a), mean(x[0] for x in b), mean(x[6] for x in b)
                ran = ""
                if aggressor == "nccl":
                    ran = f" overlap={beside * rate / alone_rate:.0f} rate={rate:.4g} rate_alone={alone_rate:.4g}"
                    rate = alone_rate
                traffic = rate * (1 if aggressor == "h2d" else 2)  # out of one HBM and into the other, both ways
                mhz, watts = ([mean(x[i] for x in y) for y in (a, b)] for i in (3, 4))
                note = f"{100 * (beside / alone - 1):+.1f} %, the transfer {mean(x[6] for x in b) / 1e9:.0f} GB/s"
                if regime == "sustained":
                    note += f"; {mhz[0]:.0f} -> {mhz[1]:.0f} MHz, {watts[0]:.0f} -> {watts[1]:.0f} W"
                clocks = f" clock_mhz={mhz[1]:.0f} watts={watts[1]:.0f} clock_alone={mhz[0]:.0f} watts_alone={watts[0]:.0f}"
                out.append(f"slowdown victim={victim} aggressor={aggressor} regime={regime} alone={alone:.0f} "
                           f"beside={beside:.0f}{ran} hbm_traffic={traffic:.4g}"
                           f"{clocks if regime == 'sustained' else ''}  ## {note}")
    return out


def tiles(path):
    """bench_kernels tiles: every variant of the grouped product by itself. First deciles; a shape with a variant in the
    power limit (see HOT) is left out whole, for its variants met unlike clocks."""
    names = {"grouped": "single", "grouped_cluster": "pair", "grouped_skew": "single-skew",
             "grouped_cluster_skew": "pair-skew"}
    best, rows, hot = {}, [], set()
    for op, shape, _, _, p10, _, _, _, flops, _ in read(path):
        f, words = fields(shape)
        e, n, k, mean = (int(f[x]) for x in ("E", "N", "K", "rows"))
        key = op, shape[:2], n, k
        if flops / p10 < best.get(key, 0) * (1 - HOT):
            hot.add(shape)
        best[key] = max(best.get(key, 0), flops / p10)
        name = {"up": "expert_up", "do": "expert_down"}[shape[:2]]
        rows.append((shape, f"{name} precision=bf16 rows={expert_rows(e, mean, words[0])} n={n} k={k} tile={names[op]} "
                            f"regime=burst ns={p10:.0f}"))
    return [text for shape, text in rows if shape not in hot]


def read(path):
    for line in open(path, encoding="ascii"):
        if not line.startswith("#") and line.strip():
            op, shape, regime, *numbers = line.split()
            yield op, shape, regime, *map(float, numbers)


def main():
    raw, pair, seeds, variants = sys.argv[1:5]
    quantised = sys.argv[5:6]
    rows = {}  # (row, regime) -> list of readings
    for op, shape, regime, *numbers in [x for path in [raw] + quantised for x in read(path)]:
        made = convert(op, shape)
        if made:
            rows.setdefault((made[0], regime), (made[1], []))[1].append(numbers)

    out, series = [], {}
    for (row, regime), (kind, turns) in rows.items():
        if kind and regime == "burst":
            turn = min(turns, key=lambda t: t[1])
            ns, p10, p90 = turn[1], turn[1], max(t[2] for t in turns)
            series.setdefault(kind, []).append((turn[5], turn[5] / ns, len(out)))
        else:
            turn = sorted(turns)[len(turns) // 2]
            ns, p10, p90 = turn[:3]
        text = f"{row} regime={regime} ns={ns:.0f} p10={p10:.0f} p90={p90:.0f}"
        if regime == "sustained":  # those of a burst are read after it
            text += f" clock_mhz={turn[3]:.0f} watts={turn[4]:.0f}"
        out.append(text + (f"  ## {len(turns)} turns" if len(turns) > 1 else ""))
    hot = set()
    for points in series.values():
        best = 0.0
        for _, rate, at in sorted(points):
            if rate < best * (1 - HOT):
                hot.add(at)
            best = max(best, rate)

    print("""# gpu: h200
# driver: 580.159.04
# cuda: 13.0
# cublas: 13.1.0
# cudnn: 9.19.0
# nccl: 2.28.9
# date: 2026-11-22
# kernels: grouped GEMM with a scheduler warp and clusters of two
# source: raw/h200-2026-11-22.txt, raw/h200x2-2026-11-22.txt, raw/h200-tiles-2026-11-22.txt by tests/tools/raw_to_table.py; rows marked seeded: first readings and published figures
# power_limit_w: 700
# idle_w: 125
# clock_max_mhz: 1980
# grouped_tile: 64""")
    kept = []
    for line in open(seeds, encoding="utf-8"):
        if re.match(r"# (sms|peak_|hbm_|link_|pcie_)", line):
            print(line, end="")
        elif line[0] not in "#\n" and SEEDS.search(line) and not (quantised and "precision=fp8" in line):
            head, *comment = line.rstrip("\n").split("  ##", 1)
            kept.append(head + " provenance=seeded" + "".join("  ##" + c for c in comment))
    print("""## Made from raw rows: do not edit. Ceilings are datasheet figures; pcie_rate is what pinned memory reaches.
## Burst: full clock; for products and attention the first decile of a burst's launches (see the converter's head).
## gemm_o: measured with the residual added, but at m=16384. Bytes of memory-bound rows: engine/strategy/layer.c.
""")
    print("\n".join(x for i, x in enumerate(out) if i not in hot))
    print("\n## Variants of the grouped product, each forced")
    print("\n".join(tiles(variants)))
    both = list(read(pair))
    print("\n## Between two GPUs (NV18); pulls: several in flight, p90 what one alone may take")
    print("\n".join(links(both)))
    print("\n## Beside compute: the transfer runs all the time, on both GPUs")
    print("\n".join(slowdowns(both)))
    print("\n## Not measured by the benches: first readings of other libraries, and published figures")
    print("\n".join(kept))
    print("\n## Left out, in the power limit from the first launch on:")
    for i in sorted(hot):
        print("##", out[i])


main()
