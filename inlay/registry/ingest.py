"""What may come in. A folder is looked at as a whole before a byte of it is stored.

PEFT's layout (https://huggingface.co/docs/peft/developer_guides/checkpoint): `adapter_config.json`, which
`kinds` reads, and `adapter_model.safetensors`, whose every key `fitting` matches with the base; beside them
a model card and a licence (`cards`). Everything else stays where it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inlay.errors import InputError
from inlay.registry.cards import read_papers
from inlay.registry.fingerprint import BaseFingerprint, read_json, refuse_remote_code
from inlay.registry.fitting import fit
from inlay.registry.kinds import ALONE, classify
from inlay.registry.peft_config import CONFIG
from inlay.registry.printable import printable
from inlay.registry.safetensors_header import read_header, refuse_non_finite

WEIGHTS = "adapter_model.safetensors"
TAKEN = (CONFIG, WEIGHTS, "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_CONFIG = 4 << 20
MAX_TEXT = 16 << 20
MAX_WEIGHTS = 64 << 30

CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "t = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous() for k, v in t.items()}, 'adapter_model.safetensors')\""
)
"""What turns a pickle of weights into safetensors, run beside it."""


@dataclass(frozen=True)
class Checked:
    """An adapter folder that passed: what to store and what was found out on the way.

    `files` maps a file's name in the store to where it lies; `exactness` is one of the four of `kinds`:
    "exact", "needs-conversion", "by-structure" or "alone". `rank` is the largest r of a module, 0 for kinds
    without one; `parameters` counts the numbers that are stored. `licence` and `card` are what its papers
    say, see `cards`.
    """

    files: Mapping[str, Path]
    stamps: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    kind: str
    rank: int
    targets: tuple[str, ...]
    parameters: int
    exactness: str
    notes: tuple[str, ...]
    licence: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def refuse_changed(self) -> None:
        """Raise InputError if a file was written to since it was checked."""
        for name, path in self.files.items():
            if _stamp(path) != self.stamps[name]:
                raise InputError(
                    f"{name} changed while it was registered", fix="wait for its writer, then add again"
                )


def check(folder: str | Path, base: BaseFingerprint) -> Checked:
    """Look at everything in `folder` that would be stored, against `base`. Reads, writes nothing.

    Raises InputError that names the file, the key or the value, and what to do.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"an adapter is a folder, {str(folder)!r} is none", fix="give the folder PEFT saved")
    names = sorted(os.listdir(root))
    if WEIGHTS not in names:
        pickles = [n for n in names if n.endswith(PICKLES) and n != "training_args.bin"]
        if pickles:
            raise InputError(
                f"weights must be safetensors, {str(folder)!r} has only {pickles[0]}, "
                "and a pickle runs code when it is read",
                fix=f"convert it in that folder: {CONVERT}",
            )
    for needed in (CONFIG, WEIGHTS):
        if needed not in names:
            raise InputError(
                f"an adapter needs {needed}, {str(folder)!r} has none", fix="save it with PEFT again"
            )
    files = {name: root / name for name in TAKEN if name in names}
    bounds = {CONFIG: MAX_CONFIG, WEIGHTS: MAX_WEIGHTS}
    stamps = {name: _regular(path, bounds.get(name, MAX_TEXT)) for name, path in files.items()}

    config = read_json(files[CONFIG], bound=MAX_CONFIG)
    refuse_remote_code(config, CONFIG)
    said = classify(config)
    tensors = read_header(files[WEIGHTS])
    fitted = fit(tensors, config, base)
    refuse_non_finite(files[WEIGHTS], tensors)
    notes = [*said.notes, *fitted.notes]
    if fitted.whole:
        notes.append(f"usable alone only, because it replaces whole tensors: {_first(fitted.whole)}")
    papers = read_papers(files, config)
    notes += papers.notes
    ignored = [n for n in names if n not in files]
    if ignored:
        notes.append(f"not taken: {_first(ignored)}")
    if not any(name.startswith(("LICENSE", "README")) for name in files):
        notes.append("neither a licence nor a model card came with it")
    return Checked(
        files=files,
        stamps=stamps,
        config=config,
        kind=said.kind,
        rank=fitted.rank,
        targets=fitted.targets,
        parameters=sum(t.size for t in tensors.values()),
        exactness=ALONE if fitted.whole or not fitted.low_rank else said.exactness,
        notes=tuple(notes),
        licence=papers.licence,
        card=papers.card,
    )


def _first(names: Sequence[str], most: int = 20) -> str:
    return f"{', '.join(printable(n) for n in names[:most])}{' …' if len(names) > most else ''}"


def _regular(path: Path, bound: int) -> tuple[int, ...]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise InputError(
            f"{path.name} is a link, only regular files are taken", fix="copy the file itself there"
        )
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path.name} is no regular file", fix="remove it from the folder")
    if status.st_size > bound:
        raise InputError(f"{path.name} must be at most {bound} bytes, it has {status.st_size}")
    return _stamp(path)


def _stamp(path: Path) -> tuple[int, ...]:
    status = os.lstat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
