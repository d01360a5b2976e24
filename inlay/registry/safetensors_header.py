"""A bounded reader of safetensors files: nothing is believed that the header says until it adds up.

The format (https://github.com/huggingface/safetensors#format): eight bytes, the header's length as a
little-endian unsigned integer; a JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]}};
then the tensors' bytes, each exactly once and without gaps. `__metadata__` is an optional map of strings.

Own parser rather than the library's: errors must name the file and the tensor, bounds are ours (16 MiB
instead of 100 MB of header), and the registry reads headers of bases whose tensors it never loads.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.errors import InputError

MAX_HEADER = 16 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 16
MAX_NAME = 1024  # characters of a tensor's name

# Bits, not bytes: F4 packs two values in a byte.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F16": 16, "BF16": 16,
    "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

# dtype -> (unsigned type that views it, bits that hold the exponent): all of them set is NaN or infinity.
_EXPONENT = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
    "F8_E5M2": ("u1", 0x7C),
}
_SCAN = 4 << 20  # values looked at in one go: bounds the scan's memory


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` count bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of the safetensors file at `path`, by name.

    Raises InputError naming the file and what does not add up. Reads the header only, at most 16 MiB.
    """
    try:
        total = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise _bad(path, f"it has {len(start)} bytes, fewer than the 8 of the header's length")
            length = int.from_bytes(start, "little")
            if length > MAX_HEADER or length > total - 8:
                raise _bad(
                    path,
                    f"its header claims {length} bytes, the file has {total} and the bound is {MAX_HEADER}",
                )
            header = file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return parse_header(header, total, path)


def parse_header(header: bytes, total: int, path: Path) -> dict[str, TensorInfo]:
    """As `read_header`, from the header's bytes and the file's total size; `path` is for messages."""
    if not header.startswith(b"{"):
        raise _bad(path, "its header is not a JSON object")
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _bad(path, f"its header is not sound JSON ({str(error)[:80]})") from None
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _bad(path, "__metadata__ must map text to text")
    if len(entries) > MAX_TENSORS:
        raise _bad(path, f"it lists {len(entries)} tensors, more than {MAX_TENSORS}")
    start = 8 + len(header)
    tensors = {name: _tensor(path, name, entry, start) for name, entry in entries.items()}
    position = start
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != position:
            how = "overlaps the one before" if tensor.begin < position else "leaves a gap before it"
            raise _bad(path, f"tensor {tensor.name!r} {how}")
        position = tensor.end
    if position != total:
        raise _bad(path, f"its tensors end at byte {position}, the file at {total}")
    return tensors


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    if len(name) > MAX_NAME:
        raise _bad(path, f"the name {name[:60]!r}… has {len(name)} characters, more than {MAX_NAME}")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad(path, f"the name {name[:60]!r} is no text: it has half a character") from None
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _bad(path, f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _bad(path, f"tensor {name!r} has a shape that is no list of at most {MAX_DIMENSIONS} sizes")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, f"tensor {name!r} has data_offsets that are not [begin, end]")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _bad(
            path,
            f"tensor {name!r} of {dtype} {shape} has {offsets[1] - offsets[0]} bytes instead of {bits // 8}",
        )
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _counts(value: Any) -> bool:
    """Whether `value` is a list of integers that a 64-bit size can be (True is none here)."""
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _bad(path: Path, what: str) -> InputError:
    return InputError(
        f"{path.name} is not a sound safetensors file: {what}", fix="save it again with safetensors"
    )


def refuse_non_finite(path: Path, tensors: dict[str, TensorInfo]) -> None:
    """Raise InputError that names the first tensor holding NaN or infinity.

    Every float dtype is looked at as unsigned integers of its width, so that bf16 and fp8, which numpy
    lacks, are checked like the rest; the pages are read once through a memory map.
    """
    import numpy as np  # here, so that listing and resolving do without it

    if not any(t.end > t.begin for t in tensors.values()):
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for tensor in sorted(tensors.values(), key=lambda t: t.begin):
            if tensor.dtype == "F8_E4M3":  # no infinity; NaN is all bits but the sign
                view, mask = "u1", 0x7F
            elif tensor.dtype in _EXPONENT:
                view, mask = _EXPONENT[tensor.dtype]
            elif tensor.dtype.startswith("F") or tensor.dtype.startswith("C"):
                raise InputError(
                    f"{path.name}: tensor {tensor.name!r} has dtype {tensor.dtype}, not checked for NaN",
                    fix="save it as F32, F16 or BF16",
                )
            else:
                continue
            width = np.dtype(view).itemsize
            for begin in range(tensor.begin, tensor.end, _SCAN * width):
                count = min(_SCAN, (tensor.end - begin) // width)
                # A copy: a live view would keep the map from closing when we raise.
                values = np.frombuffer(data, view, count, begin).copy()
                bits = values.dtype.type(mask)
                values &= bits
                if (values == bits).any():
                    raise InputError(
                        f"{path.name}: tensor {tensor.name!r} holds NaN or infinity, weights must be finite",
                        fix="train again with a lower rate, or from a checkpoint before it diverged",
                    )
