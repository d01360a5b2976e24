"""The header reader against the format's own library, and against files that lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_fakes import safetensors, with_header
from safetensors.numpy import save

from inlay.errors import InputError
from inlay.registry.safetensors_header import MAX_HEADER, parse_header, read_header, refuse_non_finite

WRONG = Path("x.safetensors")


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.zeros((0, 4), np.float16),
        "c": np.int64(7),
    }
    file = tmp_path / "x.safetensors"
    file.write_bytes(save({k: np.asarray(v) for k, v in tensors.items()}, metadata={"format": "np"}))
    found = read_header(file)
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        "a": ("F16", (0, 4)),
        "b": ("F32", (2, 3)),
        "c": ("I64", ()),
    }
    data = file.read_bytes()
    assert data[found["b"].begin : found["b"].end] == tensors["b"].tobytes()


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, 12, "gap"),
        ({"a": entry(4, 8, [1])}, 8, "gap"),
        ({"a": entry(0, 4, [1])}, 8, "its tensors end at byte"),
        ({"a": entry(0, 16, [4])}, 8, "its tensors end at byte"),
        ({"a": entry(0, 8, [1])}, 8, "instead of"),
        ({"a": entry(8, 0, [2])}, 8, "not \\[begin, end\\]"),
        ({"a": entry(0, 8, [-2])}, 8, "shape"),
        ({"a": entry(0, 4, [True])}, 4, "shape"),
        ({"a": entry(0, 8, [1] * 99)}, 8, "shape"),
        ({"a": entry(0, 4, [1], "F33")}, 4, "unknown dtype"),
        ({"a": {**entry(0, 4, [1]), "extra": 1}}, 4, "nothing else"),
        ({"a": [0, 4]}, 4, "nothing else"),
        ({"__metadata__": {"x": 1}}, 0, "text to text"),
        ({"a": entry(0, 10 * 2**30, [10 * 2**28])}, 1024, "its tensors end at byte"),
        ({"a": entry(0, 4, [2**62, 2**62])}, 4, "instead of"),
    ],
)
def test_a_header_that_does_not_add_up_is_refused(
    header: dict[str, object], size: int, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(with_header(json.dumps(header).encode(), b"\0" * size))
    with pytest.raises(InputError, match=said):
        read_header(file)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01\0\0",
        (10 * 2**30).to_bytes(8, "little") + b"{}" * 500,
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        (MAX_HEADER + 1).to_bytes(8, "little") + b"{" + b" " * MAX_HEADER + b"}",
        with_header(b"[]"),
        with_header(b'{"a": 1'),
        with_header(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        with_header(b'{"a": 1' + b"0" * 10_000 + b"}"),
        with_header(b'{"\xff": 1}'),
        with_header(b'{"__metadata__": {}, "__metadata__": {}}'),
    ],
    ids=[
        "empty", "cut", "10 GB header in 1 KB", "length of 2**64", "long", "list", "half", "nested", "digits",
        "no UTF-8", "twice",
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(InputError, match="not a sound safetensors file"):
        read_header(file)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(header: bytes, total: int) -> None:
    try:
        parse_header(header, total, WRONG)
    except InputError as error:
        assert str(error).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(max_size=4),
        JSON | st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}),
        max_size=3,
    ),
    st.integers(0, 400),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused(header: dict[str, object], total: int) -> None:
    text = json.dumps(header).encode()
    try:
        found = parse_header(text, total, WRONG)
    except InputError:
        return
    assert sum(t.end - t.begin for t in found.values()) == total - 8 - len(text)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(dtype: str, bad: float, tmp_path: Path) -> None:
    values = np.ones(1000, np.float32)
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors({"good": cast(values, dtype)}))
    refuse_non_finite(file, read_header(file))
    values[777] = bad
    file.write_bytes(safetensors({"good": np.ones(3, np.float32), "broken": cast(values, dtype)}))
    with pytest.raises(InputError, match=r"tensor 'broken' holds NaN or infinity"):
        refuse_non_finite(file, read_header(file))


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 to `dtype`; uint16 means bf16, the upper half of a float32."""
    if dtype == "uint16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def test_the_largest_finite_values_pass(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    largest = {
        d: np.array([np.finfo(d).max, np.finfo(d).min, -0.0], d) for d in ("float16", "float32", "float64")
    }
    file.write_bytes(safetensors({**largest, "bf16": np.array([0x7F7F, 0xFF7F], np.uint16)}))
    header = read_header(file)
    refuse_non_finite(file, header)  # raises if it refuses
    assert len(header) == 4
