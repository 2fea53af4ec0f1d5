#!/usr/bin/env python3
"""Two files of `forerun run --logits`: the same bits, or how far apart.

    compare_logits.py REFERENCE OTHER [--rms R] [--row R]

Rows are compared in order, whatever unit or group computed them. Prints the root-mean-square difference over that of the
reference, of all rows and of the worst one, and the rows whose arg-max differs with the reference's margin above 3 times
the row's own difference. Exits with 1 where the rows do not match, --rms or --row is exceeded (absent: 0, the same
bits), an arg-max differs like that, or a logit is not finite.
"""
import argparse
import array
import json
import math
import sys


def read(path):
    with open(path, "rb") as f:
        head = json.loads(f.readline())
        data = array.array("f")
        data.frombytes(f.read())
    rows, at = [], 0
    for row in head["rows"]:
        rows.append(data[at : at + row[4]])
        at += row[4]
    if at != len(data):
        sys.exit(f"{path}: {len(data)} logits, the rows have {at}")
    return rows


def rms(values):
    return math.sqrt(sum(v * v for v in values) / len(values)) if len(values) else 0.0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("reference")
    p.add_argument("other")
    p.add_argument("--rms", type=float, default=0.0)
    p.add_argument("--row", type=float)
    a = p.parse_args()
    want, got = read(a.reference), read(a.other)
    if [len(r) for r in want] != [len(r) for r in got]:
        sys.exit(f"rows differ: {[len(r) for r in want][:12]} ... and {[len(r) for r in got][:12]} ...")
    if not want:
        sys.exit("no rows")
    worst, flipped, same = 0.0, 0, True
    squares = difference = 0.0
    for w, g in zip(want, got):
        same = same and w.tobytes() == g.tobytes()
        if not all(map(math.isfinite, g)):
            sys.exit("a logit is not finite")
        d = [x - y for x, y in zip(w, g)]
        squares += sum(x * x for x in w)
        difference += sum(x * x for x in d)
        error = rms(d)
        worst = max(worst, error / max(rms(w), 1e-30))
        top = max(range(len(w)), key=w.__getitem__)
        other = max(range(len(g)), key=g.__getitem__)
        flipped += top != other and w[top] - w[other] > 3 * max(abs(x) for x in (d[top], d[other]))
    total = math.sqrt(difference / max(squares, 1e-30))
    print(f"{len(want)} rows, " + ("same bits" if same else f"rms {total:.2e}, worst row {worst:.2e}, {flipped} arg-max"))
    row = a.row if a.row is not None else 5 * a.rms
    sys.exit(0 if same or (total <= a.rms and worst <= row and flipped == 0) else 1)


main()
