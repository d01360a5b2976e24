"""A base's identity: blind to how its files are cut, sharp about what is in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from registry_fakes import base_tensors, make_base, safetensors

from inlay.errors import InputError
from inlay.registry import BaseFingerprint, cache_dir


def shard(folder: Path, *, count: int, reverse: bool = False) -> None:
    """Cut the base's weights into `count` files with an index, in this or the other order."""
    names = sorted(base_tensors(), reverse=reverse)
    tensors, weight_map = base_tensors(), {}
    (folder / "model.safetensors").unlink()
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = names[i::count]
        (folder / file).write_bytes(safetensors({n: tensors[n] for n in part}, metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_resharding_and_order_do_not_matter(tmp_path: Path) -> None:
    whole = BaseFingerprint.of(make_base(tmp_path / "a"))
    for count, reverse in ((1, True), (2, False), (3, True)):
        other = make_base(tmp_path / f"b{count}{reverse}")
        shard(other, count=count, reverse=reverse)
        assert BaseFingerprint.of(other).weights == whole.weights
    assert whole.tensors["model.norm.weight"] == ("F32", (8,))
    assert (whole.name, whole.architecture, whole.path) == ("a", "LlamaForCausalLM", tmp_path / "a")


def test_one_bit_a_name_a_shape_or_a_dtype_matters(tmp_path: Path) -> None:
    seen = {BaseFingerprint.of(make_base(tmp_path / "a")).weights}
    tensors = base_tensors()
    flipped = {k: v.copy() for k, v in tensors.items()}
    flipped["model.norm.weight"].view(np.uint32)[0] ^= 1
    renamed = {k.replace("norm", "Norm"): v for k, v in tensors.items()}
    reshaped = {k: v.reshape(2, 4) if v.ndim == 1 else v for k, v in tensors.items()}
    retyped = {k: v.view(np.uint8).reshape(-1) if v.ndim == 1 else v for k, v in tensors.items()}
    for i, changed in enumerate((flipped, renamed, reshaped, retyped)):
        folder = make_base(tmp_path / f"b{i}")
        (folder / "model.safetensors").write_bytes(safetensors(changed))
        seen.add(BaseFingerprint.of(folder).weights)
    assert len(seen) == 5


def test_the_prompt_part_is_its_own(tmp_path: Path) -> None:
    one = BaseFingerprint.of(make_base(tmp_path / "a"))
    two = BaseFingerprint.of(make_base(tmp_path / "b", template="{{ other }}"))
    assert (one.weights, one.prompt) != (two.weights, two.prompt)
    assert one.weights == two.weights
    (tmp_path / "a" / "tokenizer.json").write_text('{"changed": 1}')
    assert BaseFingerprint.of(tmp_path / "a").prompt not in (one.prompt, two.prompt)


def test_the_cache_is_believed_until_verify_and_only_for_the_same_file(tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    first = BaseFingerprint.of(base)
    assert len(list((cache_dir() / "fingerprints").iterdir())) == 1
    file = base / "model.safetensors"
    status = file.stat()
    file.write_bytes(safetensors(base_tensors(seed=9)))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # same path, size, inode and time: a liar
    assert BaseFingerprint.of(base).weights == first.weights
    assert BaseFingerprint.of(base, verify=True).weights != first.weights
    os.utime(file)
    assert BaseFingerprint.of(base).weights == BaseFingerprint.of(base, verify=True).weights


def test_a_broken_cache_is_only_a_cache(tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    first = BaseFingerprint.of(base)
    for file in (cache_dir() / "fingerprints").iterdir():
        file.write_text('{"key": 1}')
    assert BaseFingerprint.of(base) == first


def test_what_is_no_base_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pickled = make_base(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only as a pickle.*save_pretrained"):
        BaseFingerprint.of(pickled)
    remote = make_base(tmp_path / "remote")
    (remote / "config.json").write_text(json.dumps({"text_config": {"auto_map": {"AutoModel": "x.Y"}}}))
    with pytest.raises(InputError, match="auto_map"):
        BaseFingerprint.of(remote)
    tokenizer = make_base(tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["x.Y", None]}})
    )
    with pytest.raises(InputError, match="auto_map"):
        BaseFingerprint.of(tokenizer)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"needs a config\.json"):
        BaseFingerprint.of(tmp_path / "nothing")
    with pytest.raises(InputError, match="no folder"):
        BaseFingerprint.of(str(tmp_path / "not-there"))


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_that_points_out_of_its_folder_is_refused(file: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "a")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(InputError, match="points out of its folder"):
        BaseFingerprint.of(base)
