"""What composing was asked to reach beside what it does: merging.py and bank.py, in one table.

    python benchmarks/composer.py                          # all of it, about ten minutes on two cores
    python benchmarks/composer.py peft operations          # some of it
    python benchmarks/composer.py --device cuda --dtype bfloat16 --width 2048

Parts: peft methods whole (merging.py), operations decode grid swap (bank.py). Merging runs on the CPU.
Exit code 1 where a figure is missed.
"""

from __future__ import annotations

import argparse
import sys

import bank
import merging
import torch

MERGING, BANK = ("peft", "methods", "whole"), ("operations", "decode", "grid", "swap")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=" ".join((*MERGING, *BANK)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="Of PEFT and mergekit where they merge.")
    parser.add_argument("--swaps", type=int, default=1000)
    given = parser.parse_args()
    parts = given.parts or [*MERGING, *BANK]
    unknown = sorted(set(parts) - {*MERGING, *BANK})
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}")
    rows = []
    if set(parts) & set(MERGING):
        rows += merging.run(parts, given.rounds, given.threads)
    chosen = [part for part in parts if part in BANK]
    if chosen:
        rows += bank.run(chosen, given.device, given.dtype, given.width, 4 * given.rounds + 1, given.swaps)
    device = given.device if given.device == "cpu" else torch.cuda.get_device_name()
    width = max(len(what) for what, *_ in rows)
    print(f"\n{'figure (' + device + ')':{width}s}  {'asked':>12s}  {'measured':>10s}")
    for what, asked, measured, met in rows:
        print(f"{what:{width}s}  {asked:>12s}  {measured:>10s}{'' if met else '  MISSED'}")
    missed = sum(not met for *_, met in rows)
    print(f"{len(rows) - missed} of {len(rows)} figures are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
