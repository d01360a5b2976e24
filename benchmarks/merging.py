"""Merging in core space against PEFT's `svd` and against mergekit on the dense deltas; a 7B-shaped set.

Both sides run in this process, in turns, on the same adapters; a ratio is the median over the rounds of
theirs / ours. Four adapters of rank 16 at 2048 x 2048, cut to rank 16. Ours includes the cut; mergekit's
side stops at the dense result, so that a second ratio adds the decomposition that makes an adapter of it.
Ours always runs on one thread, theirs on `--threads`.

    python benchmarks/merging.py                    # all of it, a few minutes
    python benchmarks/merging.py peft methods       # some of it: peft methods whole

Methods whose result hangs on no basis are also compared uncut, as the factors of the exact result.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import inlay
from inlay.composer.factors import Adapter
from inlay.composer.merging import METHODS

SIZE, RANK, ADAPTERS = 2048, 16, 4
WEIGHTS = [1.0, 0.5, -0.7, 0.3]
PARAMS: dict[str, dict[str, Any]] = {
    **{key: {"density": 0.5} for key in ("ties", "dare_linear", "dare_ties", "della", "della_linear")},
    **{key: {"density": 0.8, "gamma": 0.05} for key in ("breadcrumbs", "breadcrumbs_ties")},
    "linear": {"normalize": False},
    "sce": {"select_topk": 0.5},
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.001},
}
LAYERS, HIDDEN, INNER = 32, 4096, 11008

Row = tuple[str, str, str, bool]
"""(what, asked, measured, whether that is met), as composer.py prints it."""


def adapters() -> list[Adapter]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(ADAPTERS):
        # Spectra that fall off, as those of trained adapters do.
        scale = torch.logspace(0, -1, RANK)
        a = torch.randn(RANK, SIZE, generator=generator) / SIZE**0.5
        b = torch.randn(SIZE, RANK, generator=generator) * scale
        made.append(Adapter(f"a{i}", {"layer": (a, b)}))
    return made


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def pairs(
    theirs: Callable[[], Any], ours: Callable[[], Any], rounds: int, threads: int
) -> tuple[float, float, float]:
    """Median of theirs / ours, and the median seconds of each; ours is the mean of ten calls a round."""
    ours()
    ratios, slow, fast = [], [], []
    for _ in range(rounds):
        torch.set_num_threads(threads)
        slow.append(seconds(theirs))
        fast.append(seconds(lambda: [ours() for _ in range(10)]) / 10)
        ratios.append(slow[-1] / fast[-1])
    return statistics.median(ratios), statistics.median(slow), statistics.median(fast)


def against_peft(rounds: int, threads: int) -> list[Row]:
    from peft import LoraConfig, get_peft_model

    inputs = adapters()
    net = torch.nn.Sequential()
    net.add_module("layer", torch.nn.Linear(SIZE, SIZE, bias=False))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["layer"])
    model = get_peft_model(net, config, adapter_name="a0")
    for adapter in inputs[1:]:
        model.add_adapter(adapter.name, config)
    layer = model.base_model.model.layer
    with torch.no_grad():
        for adapter in inputs:
            a, b = adapter.factors["layer"]
            layer.lora_A[adapter.name].weight.copy_(a)
            layer.lora_B[adapter.name].weight.copy_(b)

    found: list[Row] = []
    # As its documentation has it, and with the one argument that makes it faster.
    for label, extra in (("svd", {}), ("svd, svd_full_matrices=False", {"svd_full_matrices": False})):

        def theirs(extra: dict[str, Any] = extra) -> None:
            if "merged" in model.peft_config:
                model.delete_adapter("merged")
            names = [adapter.name for adapter in inputs]
            model.add_weighted_adapter(
                names, WEIGHTS, "merged", combination_type="svd", svd_rank=RANK, **extra
            )

        def ours() -> Adapter:
            return inlay.merge(inputs, weights=WEIGHTS, params={"normalize": False}, rank=RANK)

        ratio, slow, fast = pairs(theirs, ours, rounds, threads)
        a, b = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
        difference = relative(ours().delta("layer"), (b @ a).detach() * layer.scaling["merged"])
        print(
            f"linear, rank {RANK}, against PEFT {label}: {ratio:.0f}x "
            f"({slow * 1e3:.0f} ms against {fast * 1e3:.2f} ms), difference {difference:.1e}"
        )
        if not extra:
            what = f"linear merge with the cut over PEFT's svd on {threads} threads"
            found.append((what, ">= 300x", f"{ratio:.0f}x", ratio >= 300))
            found.append(
                ("the same, relative difference", "<= 1e-4", f"{difference:.1e}", difference <= 1e-4)
            )
    return found


def against_mergekit(rounds: int, threads: int) -> list[Row]:
    from mergekit.merge_methods import merge_tensors

    found: list[Row] = []
    for method in METHODS:
        if method.home != "mergekit":
            continue
        count = method.most or ADAPTERS
        inputs, weights = adapters()[:count], WEIGHTS[:count]
        params = PARAMS.get(method.name, {})
        if not method.weighted:
            weights = [1.0] * count
        parameters = {**params, "weight": weights} if method.weighted else params

        def theirs(
            name: str = method.name, inputs: list[Adapter] = inputs, parameters: Any = parameters
        ) -> torch.Tensor:
            tensors = [adapter.delta("layer") for adapter in inputs]
            base = None
            if name in ("slerp", "nearswap"):
                base = 0
            elif name not in ("linear", "karcher", "nuslerp", "multislerp"):
                tensors, base = [torch.zeros_like(tensors[0]), *tensors], 0
            return merge_tensors(tensors, name, parameters=parameters, base_index=base)

        def ours(
            name: str = method.name,
            inputs: list[Adapter] = inputs,
            weights: Any = weights,
            params: Any = params,
            rank: int | None = RANK,
        ) -> Adapter:
            return inlay.merge(inputs, weights=weights, method=name, params=params, rank=rank)

        ratio, slow, fast = pairs(theirs, ours, rounds, threads)
        dense = theirs()
        cut = seconds(lambda dense=dense: torch.linalg.svd(dense, full_matrices=False))
        same = "by nature another"
        if method.basis == "free":
            uncut, _, whole = pairs(theirs, lambda ours=ours: ours(rank=None), rounds, threads)
            difference = relative(ours(rank=None).delta("layer"), dense)
            same = f"uncut {uncut:.0f}x ({whole * 1e3:.2f} ms), difference {difference:.1e}"
        print(
            f"{method.name:17s} {ratio:6.0f}x  {(slow + cut) / fast:6.0f}x as an adapter  "
            f"({slow * 1e3:7.1f} ms against {fast * 1e3:6.2f} ms), {same}",
            flush=True,
        )
        asked = 100 if method.name == "ties" else 30
        what = f"{method.name} with the cut over mergekit's dense result"
        found.append((what, f">= {asked}x", f"{ratio:.0f}x", ratio >= asked))
        if method.basis == "free":
            what = f"{method.name} uncut over mergekit's dense result"
            found.append((what, f">= {asked}x", f"{uncut:.0f}x", uncut >= asked))
    return found


def peak_memory() -> int:
    """Bytes that were resident at most; Linux. `ru_maxrss` would count what the parent held at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M)[1]) * 1024  # type: ignore[index]


def whole_set(method: str) -> list[Row]:
    """In a process of its own, so that the peak is this one's."""
    torch.set_num_threads(2)
    inlay.merge(adapters(), method=method)  # what is imported on the way is not counted
    before = peak_memory()
    generator = torch.Generator().manual_seed(0)
    shapes = {
        **{f"self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qkvo"},
        **{f"mlp.{p}_proj": (INNER, HIDDEN) for p in ("gate", "up")},
        "mlp.down_proj": (HIDDEN, INNER),
    }
    inputs = [
        Adapter(
            f"a{i}",
            {
                f"layers.{layer}.{module}": (
                    torch.randn(RANK, columns, generator=generator),
                    torch.randn(rows, RANK, generator=generator),
                )
                for layer in range(LAYERS)
                for module, (rows, columns) in shapes.items()
            },
        )
        for i in range(ADAPTERS)
    ]
    held = sum(a.nbytes + b.nbytes for adapter in inputs for a, b in adapter.factors.values())
    start = time.perf_counter()
    made = inlay.merge(inputs, method=method, params=PARAMS[method], rank=RANK)
    took = time.perf_counter() - start
    peak = peak_memory() - before
    print(
        f"{LAYERS} layers x {len(shapes)} targets, {method}, {len(made.factors)} modules: {took:.1f} s, "
        f"peak {peak / held:.2f}x the {held / 2**20:.0f} MiB of the adapters, the adapters included"
    )
    what = f"7B-shaped set merged by {method}"
    return [
        (what, "<= 60 s", f"{took:.1f} s", took <= 60),
        (f"{what}, peak memory", "<= 3x", f"{peak / held:.2f}x", peak <= 3 * held),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["peft", "methods", "whole"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(whole_set(given.only)))
        return
    run(given.parts, given.rounds, given.threads)


def run(parts: Sequence[str], rounds: int = 5, threads: int = 2) -> list[Row]:
    """The parts named; what was asked beside what was measured."""
    print(f"torch {torch.__version__}, theirs on {threads} threads, ours on one, {os.cpu_count()} cores")
    found: list[Row] = []
    if "peft" in parts:
        found += against_peft(rounds, threads)
    if "methods" in parts:
        found += against_mergekit(rounds, threads)
    if "whole" in parts:
        for method in ("linear", "ties"):
            command = [sys.executable, __file__, "--only", method]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            *lines, rows = said.splitlines()
            print(*lines, sep="\n", flush=True)
            found += [(what, asked, measured, met) for what, asked, measured, met in json.loads(rows)]
    return found


if __name__ == "__main__":
    main()
