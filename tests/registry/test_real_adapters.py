"""Adapters found in public repositories, against bases of their true names and shapes.

The bases themselves are not here: transformers says, without memory for the weights, which tensors they have;
a file of that layout is made whose body is a hole. Zeros are hashed like any weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.registry import BaseFingerprint, Registry
from inlay.registry.ingest import CONFIG, WEIGHTS, check
from inlay.registry.kinds import classify

pytestmark = pytest.mark.data


def gpt2(transformers: Any) -> Any:
    return transformers.GPT2Model(transformers.GPT2Config())  # the hub's gpt2 is the body without its head


def distilbert(transformers: Any) -> Any:
    return transformers.DistilBertForMaskedLM(transformers.DistilBertConfig())


def open_calm_1b(transformers: Any) -> Any:
    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=52096,
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=8192,
        )
    )


@dataclass(frozen=True)
class Real:
    base: Callable[[Any], Any]
    exactness: str
    rank: int
    targets: tuple[str, ...]
    parameters: int
    base_model: str


REAL = {
    "gpt2-emotion-seqcls-lora": Real(gpt2, "alone", 8, ("c_attn",), 12 * 8 * (768 + 2304) + 6 * 768, "gpt2"),
    "gpt2-tigrinya-causal-lora": Real(
        gpt2,
        "exact",
        8,
        ("c_attn", "c_proj"),
        12 * 8 * ((768 + 2304) + (768 + 768) + (3072 + 768)),
        "gpt2",
    ),
    "distilbert-emotion-seqcls-lora": Real(
        distilbert,
        "alone",
        8,
        ("q_lin", "v_lin"),
        6 * 2 * 8 * (768 + 768) + (768 * 768 + 768) + (6 * 768 + 6),
        "distilbert-base-uncased",
    ),
    "opencalm1b-r1-causal-lora": Real(
        open_calm_1b, "exact", 1, ("query_key_value",), 24 * (2048 + 6144), "cyberagent/open-calm-1b"
    ),
}
BIG = "opencalm1b-r1-causal-lora"  # 2.8 GB of zeros take seconds to hash
NAMES = [n if n != BIG else pytest.param(n, marks=pytest.mark.slow) for n in REAL]


def hollow_base(make: Callable[[Any], Any], folder: Path) -> Path:
    """A model's folder in bf16 that takes no room on the disk."""
    import torch
    import transformers

    with torch.device("meta"):
        model = make(transformers)
    folder.mkdir()
    model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [type(model).__name__]}))
    header, position = {}, 0
    for name, shape in shapes_of(model).items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    assert os.stat(folder / "model.safetensors").st_blocks * 512 < 1 << 20
    return folder


def shapes_of(model: Any) -> Mapping[str, list[int]]:
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return {name: list(t.shape) for name, t in model.state_dict().items() if name not in tied}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Any], Any]], BaseFingerprint]:
    made: dict[Any, BaseFingerprint] = {}

    def base(make: Callable[[Any], Any]) -> BaseFingerprint:
        if make not in made:
            made[make] = BaseFingerprint.of(
                hollow_base(make, tmp_path_factory.mktemp("hollow") / make.__name__)
            )
        return made[make]

    return base


def test_every_adapter_of_the_data_is_here(data_dir: Path) -> None:
    assert {p.parent.name for p in (data_dir / "adapters").glob(f"*/{WEIGHTS}")} == set(REAL)


@pytest.mark.parametrize("name", NAMES)
def test_a_real_adapter_comes_in(
    name: str,
    bases: Callable[[Callable[[Any], Any]], BaseFingerprint],
    registry: Registry,
    data_dir: Path,
) -> None:
    real, folder = REAL[name], data_dir / "adapters" / name
    version = registry.add(name, folder, base=bases(real.base), why="real")
    assert (version.kind, version.exactness, version.rank) == ("lora", real.exactness, real.rank)
    assert (version.targets, version.parameters) == (real.targets, real.parameters)
    assert version.card["config_base"] == real.base_model
    assert version.licence is None
    assert not [note for note in version.notes if "target_modules" in note]
    for file in (CONFIG, WEIGHTS, "README.md"):
        assert registry.read_file(version, file) == (folder / file).read_bytes()
    assert registry.fsck() == []


def test_cards_of_real_adapters_are_read(
    bases: Callable[[Callable[[Any], Any]], BaseFingerprint], data_dir: Path
) -> None:
    folder = data_dir / "adapters" / "gpt2-tigrinya-causal-lora"
    assert dict(check(folder, bases(gpt2)).card) == {
        "base_model": "gpt2",
        "config_base": "gpt2",
        "datasets": ["custom"],
        "language": ["ti"],
        "library_name": "peft",
        "metrics": ["perplexity"],
        "pipeline_tag": "text-generation",
        "tags": ["base_model:adapter:gpt2", "lora", "transformers"],
    }


def test_a_real_adapter_on_another_real_base_is_refused(
    bases: Callable[[Callable[[Any], Any]], BaseFingerprint], data_dir: Path
) -> None:
    folder = data_dir / "adapters" / "gpt2-tigrinya-causal-lora"
    with pytest.raises(InputError, match=r"module 'transformer\.h\.0\.attn\.c_attn' is not in the base"):
        check(folder, bases(distilbert))


def test_configurations_from_2023_on_are_classified(data_dir: Path) -> None:
    found = sorted((data_dir / "adapters" / "config_only").glob("*.json"))
    assert len(found) == 7
    for file in found:
        said = classify(json.loads(file.read_text()))
        assert (said.kind, said.exactness, said.notes) == ("lora", "exact", ()), file.name
