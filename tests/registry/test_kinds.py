"""Every kind that PEFT writes, against PEFT itself: what it saved comes in, and what was broken is named."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft_cases import CASES, Case, save_adapter, save_base
from safetensors.numpy import load_file, save_file

from inlay.errors import InputError
from inlay.registry import BaseFingerprint, Registry
from inlay.registry.ingest import CONFIG, WEIGHTS, check
from inlay.registry.kinds import ALONE, KINDS, classify

HANDMADE = ("BONE",)  # no longer in PEFT; its folders still are in hubs


FIRST = {case.kind: name for name, case in reversed(CASES.items())}
BROKEN = [n if n in FIRST.values() else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
"""Cases to break: one of each kind, all others among the slow tests."""


class Built:
    """Adapters saved by PEFT, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bases: dict[str, BaseFingerprint] = {}
        self._made: dict[str, tuple[Path, int]] = {}

    def base(self, name: str) -> BaseFingerprint:
        if name not in self._bases:
            self._bases[name] = BaseFingerprint.of(save_base(name, self.root / f"base-{name}"))
        return self._bases[name]

    def adapter(self, name: str) -> tuple[Path, int]:
        if name not in self._made:
            folder = self.root / name.replace(" ", "-")
            self._made[name] = folder, save_adapter(CASES[name], folder)
        return self._made[name]

    def copy(self, name: str, where: Path) -> Path:
        return Path(shutil.copytree(self.adapter(name)[0], where / "adapter"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("peft"))


def own_keys(case: Case, tensors: dict[str, np.ndarray]) -> list[str]:
    """The keys of what the kind itself keeps, without whole tensors, biases and new tokens."""
    marks = KINDS[PEFT_TYPE[case.kind]].marks
    return [k for k in tensors if (any(f".{mark}" in k for mark in marks) if marks else "." not in k)]


def module_of(case: Case, key: str) -> str:
    """What stands before the kind's own part of a key; nothing for kinds without modules."""
    marks = KINDS[PEFT_TYPE[case.kind]].marks
    return key[: key.rindex(f".{marks[0]}")] if marks else ""


PEFT_TYPE = {
    **{k.lower(): k for k in KINDS},
    **dict.fromkeys(("rslora", "dora", "pissa", "olora"), "LORA"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_peft_saved_comes_in(name: str, built: Built) -> None:
    case, (folder, saved) = CASES[name], built.adapter(name)
    checked = check(folder, built.base(case.base))
    assert (checked.kind, checked.exactness, checked.rank) == (case.kind, case.exactness, case.rank)
    assert checked.targets == tuple(sorted(case.targets))
    assert checked.parameters == saved
    assert checked.card["peft_version"] == json.loads((folder / CONFIG).read_text())["peft_version"]
    assert not [note for note in checked.notes if "target_modules" in note or "not checked" in note]
    said = classify(json.loads((folder / CONFIG).read_text()))
    assert said.kind == case.kind
    assert said.exactness == checked.exactness or checked.exactness == ALONE


@pytest.mark.parametrize("name", BROKEN)
def test_a_configuration_of_an_older_peft_says_less_and_means_the_same(
    name: str, built: Built, tmp_path: Path
) -> None:
    """Only fields that differ from PEFT's defaults are left, as in versions that did not have the rest."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    case, folder = CASES[name], built.copy(name, tmp_path)
    before = check(folder, built.base(case.base))
    config = json.loads((folder / CONFIG).read_text())
    defaults = {
        f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[config["peft_type"]])
    }
    said = {k: v for k, v in config.items() if k == "peft_type" or (k in defaults and v != defaults[k])}
    assert len(said) < len(config)
    (folder / CONFIG).write_text(json.dumps(said))
    after = check(folder, built.base(case.base))
    assert dataclasses.replace(
        after, files=before.files, stamps=before.stamps, config=before.config, card=before.card
    ) == before  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_module_of_another_name_is_refused(name: str, built: Built, tmp_path: Path) -> None:
    case, folder = CASES[name], built.copy(name, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    key = own_keys(case, tensors)[-1]
    module = module_of(case, key)
    if module in ("", "base_model"):  # no module: the key itself
        renamed = {(f"{k}_other" if k == key else k): v for k, v in tensors.items()}
    else:
        other = re.sub(r"\.(layers|layer|h)\.\d+\.", r".\1.9.", module)
        other = other if other != module else f"{module}_other"
        renamed = {
            (other + k.removeprefix(module) if k.startswith(f"{module}.") else k): v
            for k, v in tensors.items()
        }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"fits nothing|is not in the base") as caught:
        check(folder, built.base(case.base))
    assert ".9." in str(caught.value) or "_other" in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_tensor_of_another_shape_is_refused(name: str, built: Built, tmp_path: Path) -> None:
    """Each of the kind's tensors in turn: transposed where that is another shape, else one value longer."""
    case, folder = CASES[name], built.copy(name, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    own = own_keys(case, tensors)
    # One key of each sort is enough: the modules' are checked alike.
    sorts = {re.sub(r"\d+", "N", key): key for key in own}
    for key in sorts.values():
        value = tensors[key]
        turned = np.ascontiguousarray(value.T)
        if turned.shape == value.shape:
            turned = np.resize(value, (*value.shape[:-1], value.shape[-1] + 1))
        save_file({**tensors, key: turned}, folder / WEIGHTS)
        with pytest.raises(InputError) as caught:
            check(folder, built.base(case.base))
        said = str(caught.value)
        named = [part for part in key.removeprefix("base_model.model.").split(".") if len(part) > 3]
        assert any(part in said for part in named), (key, said)


@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_tensor_is_refused_or_noted(name: str, built: Built, tmp_path: Path) -> None:
    """A kind with one tensor for a module loses the module with it, which can only be noted."""
    case, folder = CASES[name], built.copy(name, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    own = own_keys(case, tensors)
    for key in {re.sub(r"\d+", "N", key): key for key in own}.values():
        if key.startswith("base_model.tinylora_v."):
            continue  # how many there are depends on weight_tying
        if re.search(r"\.layers\..*randlora_[AB]$", key):
            continue  # a copy of what is shared
        siblings = [k for k in own if module_of(case, k) == module_of(case, key)]
        save_file({k: v for k, v in tensors.items() if k != key}, folder / WEIGHTS)
        if len(siblings) == 1 and len(own) > 1 and module_of(case, key) != "base_model":
            notes = check(folder, built.base(case.base)).notes
            assert any("have no tensors" in note for note in notes), key
        else:
            with pytest.raises(InputError, match=r"without|is not there|hold no") as caught:
                check(folder, built.base(case.base))
            assert re.split(r"[.]", key.removeprefix("base_model.model."))[-2 if "." in key else -1] in str(
                caught.value
            ) or "hold no" in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_stray_key_is_refused(name: str, built: Built, tmp_path: Path) -> None:
    case, folder = CASES[name], built.copy(name, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    own = own_keys(case, tensors)[0]
    marks = KINDS[PEFT_TYPE[case.kind]].marks or ("prompt_",)
    before = own[: own.rindex(marks[0])] if marks[0] in own else ""
    for stray in (f"{before}{marks[0]}stray", "base_model.model.stray.weight", "base_model.stray", "stray"):
        save_file({**tensors, stray: np.zeros(1, np.float32)}, folder / WEIGHTS)
        with pytest.raises(InputError, match=rf"key '{re.escape(stray)}' fits nothing"):
            check(folder, built.base(case.base))


def test_no_kind_of_peft_is_without_an_answer() -> None:
    from peft import PeftType

    assert set(KINDS) == {t.value for t in PeftType} | set(HANDMADE)
    accepted = {peft_type for peft_type, kind in KINDS.items() if not kind.refused}
    assert accepted == {PEFT_TYPE[case.kind] for case in CASES.values()}


@pytest.mark.parametrize(
    "peft_type", [t for t, kind in KINDS.items() if t not in HANDMADE and not kind.refused]
)
def test_defaults_are_those_of_peft(peft_type: str) -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {f.name: f.default for f in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])}
    assert {name: fields[name] for name in KINDS[peft_type].defaults} == KINDS[peft_type].defaults


@pytest.mark.parametrize("peft_type", [t for t, kind in KINDS.items() if kind.refused])
def test_kinds_that_cannot_be_checked_are_refused_by_name(
    peft_type: str, built: Built, tmp_path: Path
) -> None:
    folder = built.copy("lora", tmp_path)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "peft_type": peft_type}))
    with pytest.raises(InputError, match=rf"of peft_type {peft_type} is not taken: it") as caught:
        check(folder, built.base("llama"))
    assert caught.value.fix


@pytest.mark.parametrize(
    "peft_type", ["lora", "", None, 1, True, [], {}, "LORA\x00", ["LORA"], "AUTO", "MIXED", "l" * 10_000]
)
def test_what_is_no_peft_type_is_refused(peft_type: object) -> None:
    with pytest.raises(InputError, match=r"is no kind of adapter that PEFT 0\.21 writes") as caught:
        classify({"peft_type": peft_type})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("changes", "kind", "exactness", "note"),
    [
        ({}, "lora", "exact", None),
        ({"init_lora_weights": False}, "lora", "exact", None),
        ({"init_lora_weights": "eva"}, "lora", "exact", None),
        ({"init_lora_weights": "CorDA"}, "corda", "needs-conversion", "only after conversion"),
        ({"init_lora_weights": "loftq"}, "loftq", "needs-conversion", "only after conversion"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga", "needs-conversion", "only after conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa", "needs-conversion", "only after conversion"),
        ({"init_lora_weights": "pissa_of_tomorrow"}, "lora", "alone", "which is not known"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "dora", "alone", None),
        ({"use_rslora": True, "use_dora": True}, "dora", "alone", None),
        ({"modules_to_save": ["lm_head"]}, "lora", "alone", None),
        ({"modules_to_save": []}, "lora", "exact", None),
        ({"bias": "lora_only"}, "lora", "alone", "because of bias 'lora_only'"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "lora", "alone", "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "lora", "alone", "target_parameters"),
        ({"alora_invocation_tokens": [1], "use_qalora": True}, "lora", "alone", "tokens, use_qalora"),
        ({"rank_pattern": {"q": 2}}, "lora", "exact", "differ by pattern"),
    ],
)  # fmt: skip
def test_a_configuration_alone_is_classified(
    changes: dict[str, Any], kind: str, exactness: str, note: str | None
) -> None:
    said = classify({"peft_type": "LORA", "r": 8, **changes})
    assert (said.kind, said.exactness) == (kind, exactness)
    assert note is None if not said.notes else any((note or "…") in n for n in said.notes)


def test_registered_kinds_are_kept_with_what_was_found(
    built: Built, registry: Registry, tmp_path: Path
) -> None:
    for name in ("loha", "prompt_tuning", "unilora", "lora on conv1d"):
        case = CASES[name]
        folder, saved = built.adapter(name)
        version = registry.add(name.replace(" ", "-").replace("_", "-"), folder, base=built.base(case.base))
        assert (version.kind, version.exactness, version.rank) == (case.kind, case.exactness, case.rank)
        assert (version.targets, version.parameters) == (tuple(sorted(case.targets)), saved)
        assert registry.read_file(version, CONFIG) == (folder / CONFIG).read_bytes()
    assert registry.fsck() == []


@pytest.mark.parametrize("name", ["tinylora", "prompt_tuning", "ia3"])
def test_what_cannot_be_composed_says_so_by_name(name: str, built: Built) -> None:
    from inlay.composer import read_adapter

    with pytest.raises(InputError, match=f"its kind is {CASES[name].kind.upper()}"):
        read_adapter(built.adapter(name)[0])


def test_the_table_in_the_documentation_is_the_one_in_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    rows = {
        row[1].strip(" `"): {word.strip(",") for word in row[3].split() if word.strip(",").isupper()}
        for row in (line.split("|") for line in text.splitlines() if line.startswith("| "))
        if len(row) == 5
    }
    for exactness in ("by-structure", "alone", "refused"):
        expected = {
            name
            for name, kind in KINDS.items()
            if ("refused" if kind.refused else kind.exactness) == exactness
        }
        assert rows[exactness] == expected
    assert KINDS["LORA"].exactness == "exact"
