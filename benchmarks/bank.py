"""The bank against PEFT's mixed batches (`adapter_names`), and a swap against load_adapter + set_adapter.

Both sides run in this process, in turns, on the same weights; their outputs are compared first. A ratio is
the median over the rounds of ours / PEFT's. The model is a Llama of random weights: 8 layers, 56 adapted
modules, 512 wide; adapters of rank 8.

    python benchmarks/bank.py                      # all of it, one thread, a few minutes
    python benchmarks/bank.py operations grid      # some of it: operations decode grid swap
    python benchmarks/bank.py --device cuda --dtype bfloat16 --width 2048
    python benchmarks/bank.py swap --swaps 1000    # and whether memory is steady
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from inlay.composer.bank import Bank
from inlay.composer.factors import Adapter

Row = tuple[str, str, str, bool]
"""(what, asked, measured, whether that is met), as composer.py prints it."""

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 8


class Counted(TorchDispatchMode):
    """Counts the ATen operations that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


class Sides:
    """The same base three times, sharing its weights: bare, with a bank, with PEFT."""

    def __init__(self, device: str, dtype: str, width: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=1024,
        )
        self.device, self.config = device, config
        self.bare = LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval().requires_grad_(False)
        self.ours = self._twin()
        self.bank = Bank(self.ours)
        self.peft: PeftModel

    def _twin(self) -> LlamaForCausalLM:
        with torch.device("meta"):
            twin = LlamaForCausalLM(self.config)
        twin.to_empty(device=self.device)
        for name, parameter in self.bare.named_parameters():
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, parameter)
        for name, buffer in self.bare.named_buffers():
            parent, _, child = name.rpartition(".")
            twin.get_submodule(parent).register_buffer(child, buffer, persistent=False)
        return twin.eval()

    def _factors(self, name: str) -> Adapter:
        return Adapter(
            name,
            {
                path.removeprefix("base_model.model."): (
                    module.lora_A[name].weight.float().cpu(),
                    module.lora_B[name].weight.float().cpu() * module.scaling[name],
                )
                for path, module in self.peft.named_modules()
                if hasattr(module, "lora_A") and name in module.lora_A
            },
        )

    def hold(self, adapters: int) -> None:
        """So many adapters, the same ones, on either side: PEFT's forward goes through all that it holds."""
        lora = LoraConfig(r=RANK, lora_alpha=16, target_modules=TARGETS)
        self.peft = get_peft_model(self._twin(), lora, adapter_name="a0")
        for i in range(1, adapters):
            self.peft.add_adapter(f"a{i}", lora)
        torch.manual_seed(1)
        for name, parameter in self.peft.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.05
        self.peft.to(self.device, self.bare.dtype).eval().requires_grad_(False)
        self.bank.detach()
        self.bank.attach([self._factors(f"a{i}") for i in range(adapters)])

    def inputs(self, rows: int, length: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(rows * 1000 + length)
        return torch.randint(0, 1024, (rows, length), generator=generator).to(self.device)

    def calls(self, rows: int, length: int, adapters: int, past: int) -> dict[str, Callable[[], Any]]:
        """For each side one forward; row i speaks with adapter i modulo `adapters`."""
        ids = self.inputs(rows, length)
        names = [f"a{i % adapters}" for i in range(rows)]
        gate = torch.zeros(rows, adapters)
        for i in range(rows):
            gate[i, i % adapters] = 1.0
        self.bank.gate.set(gate)
        sides: dict[str, tuple[Any, dict[str, Any]]] = {
            "bare": (self.bare, {}),
            "ours": (self.ours, {}),
            "peft": (self.peft, {"adapter_names": names}),
        }
        found: dict[str, Callable[[], Any]] = {}
        for side, (model, more) in sides.items():
            cache = None
            if past:
                cache = DynamicCache(config=self.config)
                model(input_ids=self.inputs(rows, past), past_key_values=cache, use_cache=True, **more)

            def forward(model: Any = model, more: dict[str, Any] = more, cache: Any = cache) -> torch.Tensor:
                if cache is None:
                    return model(input_ids=ids, use_cache=False, **more).logits
                logits = model(input_ids=ids, past_key_values=cache, use_cache=True, **more).logits
                cache.crop(-length)  # the next call meets the same past
                return logits

            found[side] = forward
        return found

    def seconds(self, call: Callable[[], Any]) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def in_turns(
        self, calls: dict[str, Callable[[], Any]], names: Sequence[str], rounds: int
    ) -> dict[str, list[float]]:
        """Seconds of each side by round; who goes first alternates."""
        times: dict[str, list[float]] = {name: [] for name in names}
        for name in names:
            calls[name]()
        for i in range(rounds):
            for name in names if i % 2 else list(names)[::-1]:
                times[name].append(self.seconds(calls[name]))
        return times


def check_equal(calls: dict[str, Callable[[], Any]], tolerance: float) -> float:
    """The largest difference over the largest value; AssertionError beyond the tolerance."""
    ours, peft, bare = (calls[side]().float() for side in ("ours", "peft", "bare"))
    off = float((ours - peft).abs().max() / peft.abs().max())
    assert off <= tolerance, f"ours and PEFT's outputs differ by {off:.1e}"
    assert float((bare - peft).abs().max() / peft.abs().max()) > 0.1, "the adapters must be seen"
    return off


def operations(sides: Sides, tolerance: float) -> list[Row]:
    sides.hold(16)
    calls = sides.calls(16, 16, 16, past=0)
    check_equal(calls, tolerance)
    counts = {}
    for side, call in calls.items():
        with Counted() as counted:
            call()
        counts[side] = counted.calls
    print(
        f"ATen operations, 16 adapters in one batch: PEFT {counts['peft']}, ours {counts['ours']}, bare "
        f"{counts['bare']}: {counts['peft'] / counts['ours']:.1f}x fewer, asked at least 10x"
    )
    fewer = counts["peft"] / counts["ours"]
    return [
        ("ATen operations of a forward, 16 adapters in one batch", ">= 10x", f"{fewer:.1f}x", fewer >= 10)
    ]


def decode(sides: Sides, tolerance: float, rounds: int) -> list[Row]:
    found = []
    asked = 2.5 if sides.device == "cpu" else 5.0
    for rows, adapters in ((1, 1), (16, 1), (16, 16)):
        sides.hold(adapters)
        calls = sides.calls(rows, 1, adapters, past=64)
        check_equal(calls, tolerance)
        times = sides.in_turns(calls, ("bare", "ours", "peft"), rounds)
        bare, ours, peft = (statistics.median(times[side]) * 1e3 for side in ("bare", "ours", "peft"))
        print(
            f"decode step, {rows} rows, {adapters} adapters: bare {bare:.2f} ms, ours +{ours - bare:.2f}, "
            f"PEFT +{peft - bare:.2f}: {(peft - bare) / max(ours - bare, 1e-9):.1f}x less, asked {asked:g}x"
        )
        less = (peft - bare) / max(ours - bare, 1e-9)
        what = f"added to a decode step, {rows} rows, {adapters} adapters"
        found.append((what, f">= {asked:g}x less", f"{less:.1f}x", less >= asked))
    return found


def grid(sides: Sides, tolerance: float, rounds: int) -> list[Row]:
    ratios = []
    shapes = (
        ("prefill", 16, 64),
        ("prefill", 1, 512),
        ("decode", 1, 1),
        ("decode", 16, 1),
        ("decode", 64, 1),
    )
    for adapters in (1, 4, 16, 64):
        sides.hold(adapters)
        for what, rows, length in shapes:
            calls = sides.calls(rows, length, adapters, past=64 if what == "decode" else 0)
            off = check_equal(calls, tolerance)
            n = rounds if what == "decode" else max(5, rounds // 4)
            times = sides.in_turns(calls, ("ours", "peft"), n)
            pairs = sorted(a / b for a, b in zip(times["ours"], times["peft"], strict=True))
            ratios.append(statistics.median(pairs))
            paths = {
                type(layer._prepared[2]).__name__ for layer in sides.bank.layers.values() if layer._prepared
            }
            print(
                f"{what} {rows}x{length}, {adapters} adapters: {ratios[-1]:.2f}x "
                f"({pairs[n // 4]:.2f} to {pairs[3 * n // 4]:.2f}), {'/'.join(sorted(paths)).lower()}, "
                f"outputs differ by {off:.0e}" + (" MISSED" if ratios[-1] > 1.15 else "")
            )
    mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
    print(f"grid: geometric mean {mean:.2f}x, asked at most 1.0x; worst {max(ratios):.2f}x, at most 1.15x")
    return [
        ("time of a forward over PEFT's, geometric mean of 20 cells", "<= 1.0x", f"{mean:.2f}x", mean <= 1.0),
        ("the same, worst cell", "<= 1.15x", f"{max(ratios):.2f}x", max(ratios) <= 1.15),
    ]


def swap(rounds: int, swaps: int, device: str) -> list[Row]:
    """Two adapters in turns in a registry, each verified and read from the disk at every swap; PEFT reads the
    same folders, and what it swapped out is deleted between the timed calls."""
    from inlay.builtin import base_path
    from inlay.composer import compose
    from inlay.evals.inference import load_base
    from inlay.registry import Registry

    base, other = (load_base(base_path(), device=device) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        store = Registry.open(Path(folder) / "store", create=True)
        locks, folders = [], []
        for i in range(2):
            torch.manual_seed(i)
            lora = LoraConfig(
                r=RANK, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"
            )
            made = get_peft_model(other.model, lora)
            folders.append(Path(folder) / f"a{i}")
            made.save_pretrained(folders[-1])
            made.unload()
            (folders[-1] / "README.md").unlink(missing_ok=True)
            store.add(f"a{i}", folders[-1], base=base.fingerprint, why="benchmark")
            locks.append(store.lock(f"variant{i}", {"stack": [f"a{i}@v1"]}))
        model = compose(locks[0], store=store, base=base)
        peft = PeftModel.from_pretrained(other.model, folders[0], adapter_name="s0")
        ids = torch.arange(5, 25, device=device)[None]
        ratios, mine, theirs = [], [], []
        for i in range(1, rounds + 1):
            lock, source = locks[i % 2], folders[i % 2]

            def ours(lock: Any = lock) -> None:
                model.swap(lock)

            def peft_s(i: int = i, source: Path = source) -> None:
                peft.load_adapter(source, adapter_name=f"s{i}")
                peft.set_adapter(f"s{i}")

            for call, kept in ((ours, mine), (peft_s, theirs)) if i % 2 else ((peft_s, theirs), (ours, mine)):
                start = time.perf_counter()
                call()
                kept.append(time.perf_counter() - start)
            ratios.append(theirs[-1] / mine[-1])
            peft.delete_adapter(f"s{i - 1}")
            if i <= 2:
                with torch.inference_mode():
                    a, b = model.model(input_ids=ids).logits, peft(input_ids=ids).logits
                off = float((a - b).abs().max() / b.abs().max())
                assert off < 1e-4, f"after a swap the outputs differ by {off:.1e}"
        print(
            f"swap: {statistics.median(mine) * 1e3:.1f} ms against {statistics.median(theirs) * 1e3:.1f}, "
            f"{statistics.median(ratios):.1f}x faster, asked 3x"
        )
        before = None
        for i in range(swaps):
            model.swap(locks[i % 2])
            if i == min(100, swaps // 2):
                gc.collect()
                before = (resident(), model._bank.nbytes)
        gc.collect()
        assert before is not None
        print(
            f"memory over {swaps} swaps: resident {before[0] / 2**20:.0f} -> {resident() / 2**20:.0f} MiB, "
            f"bank {before[1]} -> {model._bank.nbytes} bytes"
        )
        model.detach()
        store.close()
        faster, grown = statistics.median(ratios), resident() / before[0]
        return [
            ("swap of a lock", ">= 3x faster", f"{faster:.1f}x", faster >= 3),
            (f"memory over {swaps} swaps", "<= 1.05x", f"{grown:.3f}x", grown <= 1.05),
        ]


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="operations decode grid swap")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--swaps", type=int, default=1000)
    options = parser.parse_args()
    run(options.parts, options.device, options.dtype, options.width, options.rounds, options.swaps)


def run(
    parts: Sequence[str],
    device: str = "cpu",
    dtype: str = "float32",
    width: int = 512,
    rounds: int = 21,
    swaps: int = 1000,
) -> list[Row]:
    """All parts, or those named; what was asked beside what was measured."""
    parts = parts or ["operations", "decode", "grid", "swap"]
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {device}, {dtype}, width {width}, one thread")
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    found: list[Row] = []
    if set(parts) - {"swap"}:
        sides = Sides(device, dtype, width)
        with torch.inference_mode():
            if "operations" in parts:
                found += operations(sides, tolerance)
            if "decode" in parts:
                found += decode(sides, tolerance, rounds)
            if "grid" in parts:
                found += grid(sides, tolerance, rounds)
        del sides
    if "swap" in parts:
        found += swap(rounds, swaps, device)
    return found


if __name__ == "__main__":
    main()
