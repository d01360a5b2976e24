"""What a model card says is kept as given; a broken one is noted, a trap refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_fakes import make_adapter

from inlay.errors import InputError
from inlay.registry import BaseFingerprint, Registry
from inlay.registry.cards import FIELDS, MAX_LIST, MAX_TEXT, Papers, read_papers
from inlay.registry.ingest import check

MIT = "MIT License\n\nCopyright (c) 2026\n\nPermission is hereby granted"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("papers")


def papers(
    folder: Path, front: str | bytes | None = None, licence: str | None = None, **config: object
) -> Papers:
    files = {}
    if front is not None:
        files["README.md"] = folder / "README.md"
        data = front if isinstance(front, bytes) else f"---\n{front}\n---\n# A card\n".encode()
        files["README.md"].write_bytes(data)
    if licence is not None:
        files["LICENSE"] = folder / "LICENSE"
        files["LICENSE"].write_text(licence)
    return read_papers(files, config)


def test_a_whole_card(folder: Path) -> None:
    front = """\
license: apache-2.0
base_model: gpt2
library_name: peft
pipeline_tag: text-generation
language: [ti, en]
tags:
- lora
- 2024
datasets: [custom]
metrics: perplexity
model_name: out
new_version: 1.0
model-index:
- name: x
  results: []
"""
    found = papers(
        folder, front, base_model_name_or_path="/data/models/gpt2", peft_version="0.18.1", r=8
    )  # fmt: skip
    assert found == Papers(
        "apache-2.0",
        {
            "base_model": "gpt2",
            "library_name": "peft",
            "pipeline_tag": "text-generation",
            "language": ["ti", "en"],
            "tags": ["lora", "2024"],
            "datasets": ["custom"],
            "metrics": "perplexity",
            "model_name": "out",
            "config_base": "/data/models/gpt2",
            "peft_version": "0.18.1",
        },
        (),
    )
    assert set(found.card) - {"config_base", "peft_version"} <= set(FIELDS)


@pytest.mark.parametrize(
    ("front", "licence", "said"),
    [
        ("license: mit", None, "mit"),
        ("license: mit", "Apache License\nVersion 2.0", "mit"),
        ("license: [mit, cc-by-4.0]", None, "mit, cc-by-4.0"),
        ("license: other\nlicense_name: qwen-research", None, "other"),
        ("tags: [lora]", MIT, "MIT License"),
        (None, MIT, "MIT License"),
        (None, "\n\n                     Apache License\n      Version 2.0", "Apache License"),
        (None, "# BSD 3-Clause\n", "BSD 3-Clause"),
        (None, "\ufeffMIT", "MIT"),
        (None, "", None),
        (None, "----\n====\n", None),
        (None, "x" * 10_000, "x" * MAX_TEXT),
        ("license: true", None, None),
        ("license: {a: b}", MIT, "MIT License"),
        (None, None, None),
    ],
)
def test_the_licence_is_the_cards_else_the_files(
    front: str | None, licence: str | None, said: str | None, folder: Path
) -> None:
    assert papers(folder, front, licence).licence == said


@pytest.mark.parametrize(
    ("front", "note"),
    [
        ("license: mit\nlicense: gpl", "has the key 'license' twice"),
        ("a: [1", "not sound YAML"),
        ("a: b: c", "not sound YAML"),
        ("- a\n- b", "must be a mapping, got a list"),
        ("just text", "must be a mapping, got a str"),
        ("tags: &t [a]\ndatasets: *t", "must not use anchors or aliases"),
        ("language: !!str en", "tags are not read"),
        ("n: 2024-13-45", "cannot be read"),
        (f"n: {'9' * 5000}", "cannot be read"),
        (f"n: {':'.join(['1'] * 300)}.5", "cannot be read"),
        ("license: \x00mit", "not sound YAML"),
        (b"---\nlicense: \xff\xfe\n---\n", "not UTF-8"),
        (b"---\nlicense: mit\n", "does not end within 65536 bytes"),
        (b"---\n" + b"# a comment\n" * 10_000 + b"---\n", "does not end within 65536 bytes"),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_read_is_noted(front: str | bytes, note: str, folder: Path) -> None:
    found = papers(folder, front)
    assert (found.licence, dict(found.card)) == (None, {})
    assert len(found.notes) == 1
    assert found.notes[0].startswith("the card could not be read: ")
    assert note in found.notes[0]
    assert found.notes[0].isprintable()


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("a: !!python/object/apply:os.system ['true']", "which asks for an object"),
        ("!!python/name:os.system x: y", "which asks for an object"),
        ("a: !Exec rm", "which asks for an object"),
        ("a: !<tag:example.com,2026:x> b", "which asks for an object"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "which can grow without bound"),
        ("a: &a {b: *a}", "which can grow without bound"),
        ("a: " + "[" * 200, "nested more than 32 deep"),
        ("a: " + "{a: " * 15_000, "nested more than 32 deep"),
        ("\n".join("  " * i + "a:" for i in range(50)), "nested more than 32 deep"),
    ],
)
def test_a_card_that_is_a_trap_is_refused_at_once(front: str, said: str, folder: Path) -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as caught:
        papers(folder, front)
    assert str(caught.value).startswith("README.md: its front matter")
    assert time.monotonic() - start < 5  # unbounded, the deep ones take minutes


@pytest.mark.parametrize(
    "text", [b"", b"# no front matter", b"----\nlicense: mit\n----\n", b"---\n---\n", b"\xff\xfe\x00", b"---"]
)
def test_a_card_without_front_matter_says_nothing(text: bytes, folder: Path) -> None:
    found = papers(folder, text)
    assert (found.licence, dict(found.card)) == (None, {})
    assert len(found.notes) == (text == b"---")


def test_values_are_bounded(folder: Path) -> None:
    found = papers(
        folder,
        f"tags: [{', '.join('t' for _ in range(MAX_LIST + 1))}]\nmodel_name: {'n' * (MAX_TEXT + 1)}\n"
        "base_model: [a, [b]]\nlanguage: no\ndatasets: [1:30, yes]\nmetrics: []\npipeline_tag: 2026-01-01",
        base_model_name_or_path="b" * (MAX_TEXT + 1),
        peft_version=3,
    )
    assert dict(found.card) == {"language": "no"}
    left_out = [note.split("'s ")[1].split(" ")[0] for note in found.notes]
    assert left_out == ["base_model", "datasets", "model_name", "pipeline_tag", "tags"]


def test_half_a_character_can_be_stored(folder: Path) -> None:
    found = papers(folder, 'model_name: "a\\ud800b"', base_model_name_or_path="\ud800")
    assert json.dumps(found.card, ensure_ascii=False).encode()
    assert found.card["model_name"] == "a\\ud800b"


YAML = st.text(st.sampled_from(list("abl:-[]{}&*!|>'\"#%@`,?\n \t\\0178~=<.\x00\ud800é")), max_size=60)


@given(YAML)
@settings(max_examples=300)
def test_any_front_matter_is_read_noted_or_refused(folder: Path, front: str) -> None:
    try:
        found = papers(folder, f"---\n{front}\n---\n".encode("utf-8", "surrogatepass"))
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert json.dumps([found.licence, dict(found.card), found.notes], ensure_ascii=False).encode()


def test_a_version_carries_what_its_card_says(registry: Registry, base: Path, tmp_path: Path) -> None:
    made = make_adapter(tmp_path / "a", config={"base_model_name_or_path": "gpt2"})
    (made / "README.md").write_text("---\nlicense: mit\ntags: [lora, legal]\n---\n")
    checked = check(made, BaseFingerprint.of(base))
    assert checked.licence == "mit"
    assert dict(checked.card) == {"tags": ["lora", "legal"], "config_base": "gpt2"}
    version = registry.add("legal", made, base=base)
    assert (version.licence, dict(version.card)) == (checked.licence, dict(checked.card))
    assert registry.read_file(version, "README.md") == (made / "README.md").read_bytes()
