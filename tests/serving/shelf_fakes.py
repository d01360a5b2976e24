"""A scheduler that only does deeds, in a thread of its own, on the built-in base's real bank; and an observer
that remembers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from serving_fakes import write_adapter

from inlay.composer.bank import Bank
from inlay.evals.inference import Base
from inlay.registry import Registry
from inlay.serving.shelf import Loaded, Shelf


class DeedScheduler:
    def __init__(self, base: Base) -> None:
        self.base = base
        self.bank = Bank(base.model)
        self.forgotten: list[str] = []
        self._pool = ThreadPoolExecutor(1)

    def between_steps(self, deed: Callable[[], Any]) -> Future[Any]:
        return self._pool.submit(deed)

    def forget_prefixes(self, digest: str) -> None:
        self.forgotten.append(digest)

    def logits(self, loaded: Loaded, ids: torch.Tensor) -> torch.Tensor:
        """What rows of `loaded` compute: (rows, length, vocabulary)."""

        def deed() -> torch.Tensor:
            gate = torch.zeros(self.bank.slots)
            if loaded.plan is not None:
                gate[list(loaded.slots)] = torch.tensor(loaded.plan.gate())
            with torch.inference_mode(), self.bank.gate.held_at(gate):
                return self.base.model(input_ids=ids).logits.clone()

        return self.between_steps(deed).result()

    def stop(self) -> None:
        self._pool.shutdown()
        self.bank.detach()


@dataclass
class Told:
    loads: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    away: list[str] = field(default_factory=list)
    swaps: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def load(self, ref: str, seconds: float) -> None:
        assert seconds > 0
        self.loads.append(ref)

    def load_failed(self, ref: str, why: str) -> None:
        self.failures.append((ref, why))

    def put_away(self, ref: str) -> None:
        self.away.append(ref)

    def swap(self, ref: str, before: str | None, after: str | None) -> None:
        self.swaps.append((ref, before, after))


@contextlib.contextmanager
def shelving(store: Registry, base: Base, **settings: Any) -> Iterator[tuple[Shelf, DeedScheduler]]:
    """A shelf over a bank of its own; the base is bare again afterwards."""
    scheduler = DeedScheduler(base)
    try:
        yield Shelf(store, scheduler, base, **settings), scheduler  # type: ignore[arg-type]
    finally:
        scheduler.stop()


def put(
    store: Registry, base: Base, folder: Path, name: str, *, seed: int, rank: int = 4, **adapter: Any
) -> str:
    """The reference of a random adapter."""
    made = write_adapter(folder / f"{name}-{seed}", base, seed=seed, rank=rank, **adapter)
    return store.add(name, made, base=base.fingerprint).ref


def damage(store: Registry, ref: str) -> Callable[[], None]:
    """Change a byte of a version's weights, as a disk would; what undoes it."""
    version = store.resolve(ref)
    files = store._store.manifest(version.digest)
    digest = next(str(file["sha256"]) for file in files if str(file["path"]).endswith(".safetensors"))
    path = store._store.objects.path(digest)
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    def undo() -> None:
        path.write_bytes(whole)
        path.chmod(0o444)

    return undo


def at_once(deed: Callable[[int], Any], count: int) -> list[Any]:
    """The same in many threads that start together; what each returned or raised."""
    gate = threading.Barrier(count)

    def one(number: int) -> Any:
        gate.wait()
        try:
            return deed(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
