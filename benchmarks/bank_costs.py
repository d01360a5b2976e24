"""What the bank's cost model takes for granted, measured here: the constants of inlay/composer/costs.py.

Times the operations that the paths are made of over a grid of sizes (medians), fits the constants by least
squares on relative errors, and prints them with how far the model is off.

    python benchmarks/bank_costs.py                # CPU, one thread, float32
    python benchmarks/bank_costs.py cuda bfloat16
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import nnls

FEATURES = (512, 2048)
COLUMNS = (16, 64, 256, 1024)
TOKENS = (1, 16, 64, 512)


def median_seconds(call: Callable[[], object], device: str, rounds: int = 15) -> float:
    times = []
    for _ in range(rounds):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fit(rows: list[list[float]], seconds: list[float]) -> tuple[np.ndarray, float]:
    """Constants that are not negative, and the median relative error of what they predict."""
    matrix, target = np.array(rows), np.array(seconds)
    found, _ = nnls(matrix / target[:, None], np.ones(len(target)))
    return found, float(np.median(np.abs(matrix @ found / target - 1)))


def main() -> None:
    device, dtype = (sys.argv[1:] + ["cpu", "float32"][len(sys.argv) - 1 :])[:2]
    torch.set_num_threads(1)
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    torch.inference_mode().__enter__()

    # A product with A and its return through B: calls, multiply-adds, elements of the factors read.
    rows, seconds = [], []
    for features, columns, tokens in itertools.product(FEATURES, COLUMNS, TOKENS):
        x = torch.randn(tokens, features, **kind)
        down, up = (torch.randn(columns, features, **kind) for _ in range(2))
        y = torch.randn(tokens, features, **kind)
        seconds.append(
            median_seconds(
                lambda x=x, y=y, d=down, u=up: y.addmm_(torch.nn.functional.linear(x, d), u), device
            )
        )
        rows.append([2, 2 * features * columns * tokens, 2 * features * columns])
    (call, product, read), off = fit(rows, seconds)
    print(f"products: median relative error {off:.0%}")

    # The same with a copy of its own columns for each row.
    rows, seconds = [], []
    for features, width, batch, length in itertools.product(FEATURES, (8, 16, 64), (4, 16, 64), (1, 16, 64)):
        x = torch.randn(batch, length, features, **kind)
        y = torch.randn(batch, length, features, **kind)
        index = torch.randint(0, 1024, (batch * width,), device=device)
        down, up = (torch.randn(1024, features, **kind) for _ in range(2))

        def gathered(x=x, y=y, index=index, down=down, up=up, batch=batch, width=width) -> None:
            a = down.index_select(0, index).view(batch, width, -1)
            b = up.index_select(0, index).view(batch, width, -1)
            y.baddbmm_(torch.bmm(x, a.transpose(1, 2)), b)

        seconds.append(max(1e-9, median_seconds(gathered, device) - 4 * call))
        copied = 2 * batch * width * features
        rows.append([copied * length, copied])
    (batched, copy), off = fit(rows, seconds)
    print(f"gathering: median relative error {off:.0%}")
    print(
        f"Costs(call={call:.1e}, product={product:.1e}, batched={batched:.1e}, "
        f"read={read:.1e}, copy={copy:.1e})"
    )


if __name__ == "__main__":
    main()
