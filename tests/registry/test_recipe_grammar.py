"""The grammar of recipes: what it reads, and that every slip is named."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.errors import InputError
from inlay.registry import Guard, Merge, Recipe, Route, Stack, Use, printable

WHOLE = """
base: some/base
compose:
  stack:
    - support-domain@prod
    - {use: friendly-style@v3, weight: 0.6}
    - merge: [acme-faq@prod, {use: acme-tickets, weight: -0.8}]
      method: ties
      params: {density: 0.4, normalise: true}
      rank: 16
      seed: 3
    - route: {by: probe, experts: [banking@prod, {stack: [clinc@prod], weight: 2}], fallback: base}
      weight: 0.5
guard: {forget: 0.05, regress: 0.0, suites: {general: [general-v1], target: [acme-support]}}
"""


def test_the_whole_grammar() -> None:
    recipe = Recipe.of(WHOLE)
    assert recipe.base == "some/base"
    assert recipe.compose == Stack(
        (
            Use("support-domain@prod"),
            Use("friendly-style@v3", 0.6),
            Merge(
                (Use("acme-faq@prod"), Use("acme-tickets", -0.8)),
                "ties",
                {"density": 0.4, "normalise": True},
                16,
                "core",
                3,
            ),
            Route("probe", (Use("banking@prod"), Stack((Use("clinc@prod"),), 2.0)), "base", 0.5),
        )
    )
    assert recipe.guard == Guard(
        forget=0.05, regress=0.0, suites={"general": ("general-v1",), "target": ("acme-support",)}
    )
    assert recipe.text == WHOLE


def test_one_recipe_many_ways(tmp_path: Path) -> None:
    expected = Stack((Use("a@v1"), Use("b@prod", 0.5)))
    file = tmp_path / "acme.yaml"
    file.write_text("stack: [a@v1, {use: b@prod, weight: 0.5}]")
    parsed: dict[str, Any] = {"compose": {"stack": ["a@v1", {"use": "b@prod", "weight": 0.5}]}}
    for given_as in (file, str(file), file.read_text(), parsed, parsed["compose"], Recipe.of(file)):
        assert Recipe.of(given_as).compose == expected
    assert Recipe.of("a@v1").compose == Recipe.of({"use": "a@v1"}).compose == Use("a@v1")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("stack: [a]\nstck: 1", r"recipe has the unknown key 'stck'.*allowed: stack, weight"),
        ("compose: {stack: [a]}\nguards: {}", r"unknown key 'guards'.*allowed: base, compose, guard"),
        ("stack: [{use: a, weigth: 1}]", r"stack\.0 has the unknown key 'weigth'.*allowed: use, weight"),
        ("stack: [{us: a}]", r"must have exactly one operator, it has none but 'us'"),
        ("compose:\n  stack: [a]\n  merge: [b]", "exactly one operator, it has stack and merge"),
        ("compose: {stack: [a]}\ncompose: {stack: [b]}", r"key 'compose' twice, again at line 2"),
        ("stack: [{use: a, use: b}]", "'use' twice"),
        ("stack: []", "at least one member"),
        ("stack: a", "at least one member"),
        ("stack: [[a]]", r"recipe\.stack\.0 must be a reference"),
        ("stack: [1]", "must be a reference"),
        ("stack: [Legal@prod]", "a name must match"),
        ("use: 1", "must be a reference"),
        ("use: base", "must name it"),
        ("stack: [base, a]", "always underneath"),
        ("{use: a, weight: .nan}", "must be finite"),
        ("{use: a, weight: .inf}", "must be finite"),
        ("{use: a, weight: yes}", "must be a number"),
        ("{use: a, weight: '1'}", "must be a number"),
        ("{merge: [a, b], space: sparse}", r"unknown space 'sparse'.*core, dense"),
        ("{merge: [a, b], rank: 0}", "rank must be a whole number"),
        ("{merge: [a, b], rank: true}", "rank must be a whole number"),
        ("{merge: [a, b], energy: 0}", "energy must be above 0 and at most 1"),
        ("{merge: [a, b], energy: 1.5}", "energy must be above 0 and at most 1"),
        ("{merge: [a, b], energy: half}", "energy must be a number"),
        ("{merge: [a, b], energy: 0.9, rank: 4}", "by rank or by energy, not by both"),
        ("{merge: [a, b], seed: -1}", "seed must be"),
        ("{merge: [a, b], params: {x: [1]}}", r"params\.x must be"),
        ("{merge: [a, b], params: {x: .nan}}", "must be finite"),
        ("route: {by: magic, experts: [a]}", r"unknown router 'magic'.*probe"),
        ("route: {by: probe, expert: [a]}", r"unknown key 'expert'.*by, experts, fallback"),
        ("route: {by: probe}", "at least one member"),
        ("route: {by: probe, experts: [a], fallback: b}", "fallback can only be base"),
        ("guard: {forget: 5}\nstack: [a]", "between 0 and 1"),
        ("guard: {forgt: 0.1}\nstack: [a]", "a guard has the unknown key 'forgt'"),
        ("guard: {forget: 0.1}\nstack: [a]", "needs general suites"),
        ("base: [1]\nstack: [a]", "base must be a folder or a hub id"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("stack: [a", "not sound YAML at line"),
        ("stack: [a]\n---\nstack: [b]", "not sound YAML"),
        ("!!python/object/apply:os.system ['true']", "not sound YAML"),
        ("stack: [&x a, *x]", "anchors or aliases, line 1"),
        ("? [a]\n: b", "must be text"),
        ("no-such-file.yaml", "cannot read the recipe"),
        ("a" * 70_000, "at most 65536 bytes"),
        (3, "a path, a YAML text or a dict"),
        ({"stack": [{1: 2}]}, "exactly one operator"),
        ({"stack": [float("nan")]}, "plain data"),
        ({"stack": ["a"] * 4100}, "at most 4096 nodes"),
    ],
)  # fmt: skip
def test_every_slip_is_named(recipe: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Recipe.of(recipe)
    assert printable(str(caught.value)) == str(caught.value)


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"stack": ["a" if levels == 1 else nested(levels - 1)]}

    Recipe.of(nested(7))
    with pytest.raises(InputError, match="at most 8 levels deep"):
        Recipe.of(nested(8))
    loop: dict[str, Any] = {}
    loop["stack"] = [loop]
    with pytest.raises(InputError, match="plain data"):
        Recipe.of(loop)


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x, x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in pairwise("abcdefghi")),
        "[" * 60_000,
        "{a: " * 15_000,
        "- " * 30_000,
        "<<: {<<: {a: 1}}",
    ],
    ids=["billion laughs", "brackets", "braces", "dashes", "merge keys"],
)  # fmt: skip
def test_bombs_are_refused_quickly(bomb: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError):
        Recipe.of(bomb + "\n")
    assert time.perf_counter() - start < 2


@given(st.text(max_size=120))
def test_any_text_is_a_recipe_or_refused(text: str) -> None:
    try:
        Recipe.of(text + "\n")
    except InputError as error:
        assert "\n" not in str(error)
