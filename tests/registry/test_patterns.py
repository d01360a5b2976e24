"""PEFT's patterns: the same answers as PEFT, and no expression that takes for ever."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.registry import patterns as module
from inlay.registry.patterns import Patterns, TooCostly, matches

NAMES = [
    "lm_head",
    "model.embed_tokens",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.11.mlp.experts.3.down_proj",
    "model.layers.2.self_attn.o_proj",
]
HONEST = [
    ["q_proj", "o_proj"],
    ["model.layers.1.self_attn.q_proj", "q_proj"],
    ["q_proj", "model.layers.1.self_attn.q_proj"],
    ["proj"],
    [".*proj"],
    [r"layers\.1\..*", "layers.11.self_attn.q_proj"],
    [r"model\.layers\.(0|1|2)\.self_attn\.(q|k|v|o)_proj", r".*\.down_proj"],
    [r"[a-z]+\.layers\.\d+\.mlp\..*", "lm_head"],
    [r"layers\.[0-9]{1,2}\.self_attn.*"],
    ["model.layers.1.self.attn.q_proj", "layers.1?1.self_attn.q_proj"],
    ["(?:lm|x)_head", "embed.tokens"],
    ["", "lm_head"],
    ["(?i)LM_HEAD"],
]


@pytest.mark.parametrize("texts", HONEST)
def test_the_first_match_is_pefts(texts: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    for name in NAMES:
        try:
            expected = get_pattern_key(texts, name)
        except Exception:  # what `re` refuses, PEFT cannot load either
            with pytest.raises(TooCostly):
                Patterns(texts).first(name)
            continue
        found = Patterns(texts).first(name)
        assert (name if found is None else found) == expected


@given(
    st.lists(st.text(st.sampled_from(list("qk_.1*+?|()[]")), max_size=6), max_size=4),
    st.text(st.sampled_from(list("qk_.1")), min_size=1, max_size=8),
)
@settings(max_examples=400)
def test_any_patterns_agree_with_peft_or_are_not_run(texts: list[str], name: str) -> None:
    import re

    from peft.utils.other import get_pattern_key

    try:
        found = Patterns(texts).first(name)
    except TooCostly:
        return
    try:
        expected = get_pattern_key(texts, name)
    except re.error:
        return  # a later one is broken; an earlier one, looked up, has answered
    assert (name if found is None else found) == expected


@pytest.mark.parametrize(
    "bomb",
    [
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)+b",
        "(.*)*",
        "((a*)*)*b",
        "(a?){40}a{40}",
        r"(.)\1+b",
        "(?=a*)b",
        ".*" * 12 + "b",
        "(a|a)" * 60,
        "a{1,9999999999}",
        "(" * 3000,
        "a" * 2000,
        "[",
        "(?P<x>a)(?(x)b|c)",
    ],
)
def test_bombs_are_not_run(bomb: str) -> None:
    start = time.monotonic()
    for suffix in (False, True):
        with pytest.raises(TooCostly):
            matches(bomb, "a" * 200, suffix=suffix)
    assert time.monotonic() - start < 5  # run, most of these take longer than anybody waits


def test_one_entry_for_each_of_many_modules_is_looked_up() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(100) for j in range(100)]
    lookup = Patterns(names)
    start = time.monotonic()
    assert all(lookup.first(name) == name for name in names)
    assert time.monotonic() - start < 5  # 10,000 by 10,000 expressions take minutes


def test_all_matches_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 0.05)
    slow = Patterns([".*a.*b.*c"])
    name = "a" * 60
    with pytest.raises(TooCostly):
        for _ in range(100_000):
            slow.first(name)
