"""Whatever a folder holds, checking it ends soon with a verdict: taken, or one InputError in one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft_cases import CASES, save_adapter, save_base
from registry_fakes import WIDTH, adapter_tensors, make_adapter, safetensors, snapshot, with_header

from inlay.errors import InputError
from inlay.registry import BaseFingerprint, Registry, ingest
from inlay.registry.ingest import CONFIG, WEIGHTS, check
from inlay.registry.kinds import KINDS, classify

SAVED = (
    "lora by rank_pattern",
    "lora with replicated layers",
    "dora",
    "lora on new tokens",
    "bdlora",
    "adalora",
    "lokr",
    "vera",
    "vblora topk",
    "unilora",
    "c3a",
    "boft",
    "ia3",
    "trainable_tokens",
    "adaption_prompt",
    "prefix_tuning",
    "multitask_prompt_tuning",
    "osf",
    "glora",
    "poly",
)
BOMB = "(a+)+" * 20

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan"), 0.5])
    | st.text(max_size=4)
    | st.sampled_from(
        [BOMB, "\ud800", "\x00", "all", "all-linear", "q_proj", "[", "SEQ_2_SEQ_LM", "x" * 5000]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["q_proj", "", BOMB, "auto_map", "nblocks"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, BaseFingerprint]]:
    root = tmp_path_factory.mktemp("hostile")
    bases = {b: BaseFingerprint.of(save_base(b, root / b)) for b in {CASES[n].base for n in SAVED}}
    for name in SAVED:
        save_adapter(CASES[name], root / name)
    return {name: (root / name, bases[CASES[name].base]) for name in SAVED}


def verdict(folder: Path, base: BaseFingerprint) -> str:
    """What was said; fails if it is no verdict."""
    start = time.monotonic()
    try:
        checked = check(folder, base)
        json.dumps([checked.notes, dict(checked.card), checked.targets], ensure_ascii=False).encode()
        said = "taken"
    except InputError as error:
        said = str(error)
        assert said.isprintable()
        assert len(said) < 5000
    assert time.monotonic() - start < 30
    return said


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_real_configuration_with_wrong_fields_gets_a_verdict(
    data: st.DataObject, saved: dict[str, tuple[Path, BaseFingerprint]], tmp_path: Path
) -> None:
    folder, base = saved[data.draw(st.sampled_from(SAVED), label="adapter")]
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    fields = sorted(
        {*config, *KINDS[config["peft_type"]].defaults, "rank_pattern", "feedforward_modules", "bias"}
    )
    for field in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=3), label="fields"):
        if data.draw(st.booleans(), label="removed"):
            config.pop(field, None)
        else:
            config[field] = data.draw(VALUES, label=field)
    work = tmp_path / "work"
    if not work.exists():
        work.mkdir()
    shutil.copyfile(folder / WEIGHTS, work / WEIGHTS)
    try:
        (work / CONFIG).write_text(json.dumps(config))
    except ValueError:  # an integer too long to be written
        return
    verdict(work, base)


@given(st.dictionaries(st.sampled_from(["peft_type", "r", "target_modules", "bias", "task_type"]), VALUES))
@example({"peft_type": "LORA", "r": 10**4000})
@example({"peft_type": "LORA", "r": 8, "rank_pattern": {BOMB: 4}, "target_modules": BOMB})
def test_any_configuration_is_classified_or_refused(config: dict[str, Any]) -> None:
    try:
        said = classify(config)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert said.exactness in ("exact", "needs-conversion", "by-structure", "alone")


@pytest.mark.parametrize(
    "field", ["rank_pattern", "target_modules", "exclude_modules", "feedforward_modules"]
)
@pytest.mark.parametrize("bomb", [r"([a-z_]+\.?)+\d", r"(\w|\w\w|.)*!", ".*" * 30 + "!"])
def test_expressions_that_never_end_are_not_run(field: str, bomb: str, base: Path, tmp_path: Path) -> None:
    value: object = {bomb: 2, "nothing": 7} if field == "rank_pattern" else bomb
    folder = make_adapter(tmp_path / "a", config={field: value})
    start = time.monotonic()
    checked = check(folder, BaseFingerprint.of(base))
    assert time.monotonic() - start < 10
    noted = any("matching may take too long" in note and field in note for note in checked.notes)
    assert noted is (field != "feedforward_modules")  # no LoRA reads that one


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weights_with_damaged_bytes_get_a_verdict(data: st.DataObject, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    whole = safetensors(adapter_tensors(1))
    if not folder.exists():
        make_adapter(folder)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(whole) - 1, 1500)))] = data.draw(st.integers(0, 255))
    (folder / WEIGHTS).write_bytes(
        bytes(damaged[: data.draw(st.sampled_from([len(whole), 8, 7, 100, 1000]))])
    )
    verdict(folder, BaseFingerprint.of(base))


def header(entries: object, body: int = 0) -> bytes:
    return with_header(json.dumps(entries).encode(), b"\0" * body)


@pytest.mark.parametrize(
    "data",
    [
        header({"k" * 100_000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
        header({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 4),
        header({"a": {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}}, 4),
        header({"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 4]}}, 4),
        header({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 4),
        header({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 4]}}, 4),
        header({"a": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
        header({f"base_model.model.x{i}.lora_A.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for i in range(20_000)}),
        with_header(b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
        with_header(b'{"a":' * 100_000),
        with_header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
        with_header(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
        (2**63).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04" + b"\0" * 100,
        b"\x80\x02}q\x00." + b"\0" * 100,
    ],
    ids=[
        "long name", "half a character", "huge size", "size with a point", "dtype is a list", "three offsets",
        "nothing times huge", "20,000 modules", "dtype twice", "nested", "NaN", "minus zero", "2**63", "zip",
        "pickle",
    ],
)  # fmt: skip
def test_weights_that_lie_are_refused_in_little_memory(data: bytes, base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / WEIGHTS).write_bytes(data)
    fingerprint = BaseFingerprint.of(base)
    tracemalloc.start()
    try:
        said = verdict(folder, fingerprint)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said != "taken"
    assert peak < 40 * len(data) + (8 << 20)


def other_kind_of_file(make: Callable[[Path], object]) -> Callable[[Path, str], None]:
    def apply(folder: Path, name: str) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return apply


def listen(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "README.md", "LICENSE"])
@pytest.mark.parametrize(
    "make",
    [
        other_kind_of_file(os.mkfifo),
        other_kind_of_file(os.mkdir),
        other_kind_of_file(listen),
        other_kind_of_file(lambda path: path.symlink_to(path.parent.parent / "outside")),
        other_kind_of_file(lambda path: path.symlink_to("/dev/zero")),
        other_kind_of_file(lambda path: path.symlink_to(path.name)),
    ],
    ids=["fifo", "folder", "socket", "link out", "link to a device", "link to itself"],
)
def test_only_regular_files_are_opened(
    make: Callable[[Path, str], None], name: str, base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a")
    (tmp_path / "outside").write_text("{}")
    make(folder, name)
    with pytest.raises(InputError, match=r"is a link, only regular files|is no regular file"):
        check(folder, BaseFingerprint.of(base))


@pytest.mark.parametrize(
    ("name", "bound"),
    [(CONFIG, ingest.MAX_CONFIG), ("README.md", ingest.MAX_TEXT), ("LICENSE", ingest.MAX_TEXT)],
)
def test_files_are_bounded_before_they_are_read(name: str, bound: int, base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    with open(folder / name, "ab") as file:
        file.truncate(bound + 1)
    with pytest.raises(InputError, match=f"{name} must be at most {bound} bytes"):
        check(folder, BaseFingerprint.of(base))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "README.md"])
def test_a_file_written_while_it_is_registered_is_refused(
    name: str, three: Registry, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "a", seed=5)
    (folder / "README.md").write_text("# a card")
    original = ingest.check

    def checked_then_written(*arguments: Any, **named: Any) -> ingest.Checked:
        checked = original(*arguments, **named)
        with open(folder / name, "ab") as file:
            file.write(b" ")
        return checked

    monkeypatch.setattr(ingest, "check", checked_then_written)
    rows = snapshot(three)["rows"]
    with pytest.raises(InputError, match=f"{name} changed while it was registered"):
        three.add("legal", folder, base=base)
    assert snapshot(three)["rows"] == rows


def test_a_file_put_in_the_place_of_a_checked_one_is_refused(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    checked = check(folder, BaseFingerprint.of(base))
    checked.refuse_changed()
    status = os.stat(folder / WEIGHTS)
    shutil.copyfile(folder / WEIGHTS, folder / "other")
    os.utime(folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(folder / "other", folder / WEIGHTS)  # same bytes, same time, another file
    with pytest.raises(InputError, match="changed while it was registered"):
        checked.refuse_changed()


def test_names_that_only_look_right_are_not_taken(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    tricks = [
        "ADAPTER_MODEL.SAFETENSORS",
        "README.md\n",
        "\u202efdp.sm.EMDAER",
        "README.m\u0501",
        "adapter_config.json ",
        "\x1b[2JLICENSE",
        "training_args.bin",
        "adapter_model.bin",
    ]
    for name in tricks:
        (folder / name).write_text("no")
    checked = check(folder, BaseFingerprint.of(base))
    assert set(checked.files) == {CONFIG, WEIGHTS}
    (note,) = [note for note in checked.notes if note.startswith("not taken: ")]
    assert note.isprintable()
    assert all(
        shown in note for shown in (r"\u202e", r"\x1b[2JLICENSE", r"README.md\x0a", "training_args.bin")
    )


@pytest.mark.parametrize("name", ["Adapter_Config.json", "adapter_config.json\u200b"])
def test_a_name_in_other_letters_is_no_configuration(name: str, base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / CONFIG).rename(folder / name)
    with pytest.raises(InputError, match=r"needs adapter_config\.json"):
        check(folder, BaseFingerprint.of(base))


def test_training_args_alone_are_no_weights_to_convert(base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "training_args.bin")
    with pytest.raises(InputError, match=r"needs adapter_model\.safetensors"):
        check(folder, BaseFingerprint.of(base))


def test_the_configuration_is_kept_byte_for_byte(registry: Registry, base: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    odd = b'\n{ "peft_type":"LORA",\t"r" : 2, "\\u00e9": 1.50, "target_modules": ["v_proj","q_proj"]}\r\n \n'
    (folder / CONFIG).write_bytes(odd)
    version = registry.add("legal", folder, base=base)
    assert registry.read_file(version, CONFIG) == odd


def test_a_resized_embedding_comes_in_with_its_factors(base: Path, tmp_path: Path) -> None:
    """32 rows in the base, 34 after two tokens were added: PEFT saves the embedding whole."""
    rows = {
        "base_model.model.model.embed_tokens.base_layer.weight": np.ones((34, WIDTH), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_A": np.ones((2, 34), np.float32),
        "base_model.model.model.embed_tokens.lora_embedding_B": np.ones((WIDTH, 2), np.float32),
    }
    targets = {"target_modules": ["q_proj", "v_proj", "embed_tokens"]}
    folder = make_adapter(tmp_path / "a", tensors={**adapter_tensors(), **rows}, config=targets)
    checked = check(folder, BaseFingerprint.of(base))
    assert checked.exactness == "alone"
    assert any("has 34 rows, the base 32: resize its embedding" in note for note in checked.notes)
    rows["base_model.model.model.embed_tokens.base_layer.weight"] = np.ones((34, WIDTH + 1), np.float32)
    make_adapter(folder, tensors={**adapter_tensors(), **rows}, config=targets)
    with pytest.raises(InputError, match=r"embed_tokens\.base_layer\.weight' has shape \[34, 9\]"):
        check(folder, BaseFingerprint.of(base))
    rows["base_model.model.model.embed_tokens.base_layer.weight"] = np.ones((33, WIDTH), np.float32)
    make_adapter(folder, tensors={**adapter_tensors(), **rows}, config=targets)
    with pytest.raises(InputError, match=r"lora_embedding_A must be \[2, 33\].*got \[2, 34\]"):
        check(folder, BaseFingerprint.of(base))


def test_one_tensor_under_two_names_is_refused(base: Path, tmp_path: Path) -> None:
    """Both are names of DoRA's magnitudes in some version of PEFT; of the two only one would be looked at."""
    tensors = adapter_tensors()
    module = next(iter(tensors)).removesuffix(".lora_A.weight")
    for name in ("lora_magnitude_vector", "lora_magnitude_vector.weight"):
        tensors[f"{module}.{name}"] = np.ones(WIDTH, np.float32)
    folder = make_adapter(tmp_path / "a", tensors=tensors, config={"use_dora": True})
    with pytest.raises(InputError, match="has another lora_magnitude_vector"):
        check(folder, BaseFingerprint.of(base))


def test_long_lists_are_looked_up_and_longer_ones_refused(base: Path, tmp_path: Path) -> None:
    fingerprint = BaseFingerprint.of(base)
    many = [f"x{i}" for i in range(150_000)]
    named = [f"model.layers.{i}.self_attn.{t}" for i in range(2) for t in ("q_proj", "v_proj")]
    patterned = {"rank_pattern": {**dict.fromkeys(many[:50_000], 7), "q_proj": 2, "v_proj": 2}}
    folder = make_adapter(tmp_path / "a", config={"target_modules": many + named, **patterned})
    start = time.monotonic()
    assert check(folder, fingerprint).targets == ("q_proj", "v_proj")
    assert time.monotonic() - start < 10
    for field, most in (("target_modules", 200_000), ("modules_to_save", 1000)):
        make_adapter(folder, config={field: ["x"] * (most + 1)})
        with pytest.raises(InputError, match=f"{field} must have at most {most} names"):
            check(folder, fingerprint)
