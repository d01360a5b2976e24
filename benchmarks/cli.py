"""How long the command line takes to come up, against importing click alone.

Whole processes, interleaved; medians of `inlay --help` and `inlay ls` over `python -c "import click"`.

    python benchmarks/cli.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 21


def seconds(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "INLAY_STORE": folder + "/adapters_store"}
        inlay = str(Path(sys.executable).with_name("inlay"))
        subprocess.run(
            [inlay, "init", environment["INLAY_STORE"]],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        click = [sys.executable, "-c", "import click"]
        sides = {"inlay --help": [inlay, "--help"], "inlay ls": [inlay, "ls"]}
        for command in (click, *sides.values()):
            seconds(command, environment)
        ratios: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            floor = seconds(click, environment)
            for side, command in sides.items():
                ratios[side].append(seconds(command, environment) / floor)
    for side, limit in (("inlay --help", 3), ("inlay ls", 6)):
        low, _, high = statistics.quantiles(ratios[side], n=4)
        median = statistics.median(ratios[side])
        print(f"{side}: {median:.2f}x import click (quartiles {low:.2f} to {high:.2f}), at most {limit}x")


if __name__ == "__main__":
    main()
