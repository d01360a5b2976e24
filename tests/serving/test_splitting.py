"""Splits: parsed or refused in one line, shared out as the percents say, the same user always alike."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from inlay.errors import InputError
from inlay.serving.splitting import Splits

USERS = [f"user-{number}" for number in range(10_000)]


def arms(*texts: str, name: str = "acme") -> list[str]:
    splits = Splits.parse(texts)
    return [splits.arm(name, user) for user in USERS]


def test_shares_of_ten_thousand_users_lie_within_binomial_bounds() -> None:
    from scipy.stats import binom

    found = Counter(arms("acme=acme@prod:92.5,acme@canary:5,acme@v3:2.5"))
    for ref, share in (("acme@prod", 0.925), ("acme@canary", 0.05), ("acme@v3", 0.025)):
        low, high = binom.ppf([0.0005, 0.9995], len(USERS), share)
        assert low <= found[ref] <= high, (ref, found[ref], low, high)
    assert sum(found.values()) == len(USERS)


def test_where_a_user_falls_is_the_hash_and_nothing_else() -> None:
    """The naive oracle, in floats; so is another process' answer, and that after a restart."""
    expected = []
    for user in USERS:
        point = int(hashlib.sha256(f"acme\n{user}".encode()).hexdigest()[:16], 16) / 2**64 * 100
        expected.append("acme@canary" if point < 5 else "acme@prod")
    assert arms("acme=acme@prod:95,acme@canary:5") == expected
    other = arms("acme=acme@prod:50,acme@canary:50", "more=more@prod:50,more@canary:50", name="more")
    assert other != arms("more=more@prod:50,more@canary:50", name="other"), "a name that is not split"
    same = [ref.replace("more", "acme") for ref in other]
    assert same != arms("acme=acme@prod:50,acme@canary:50"), "each name draws anew"


@pytest.mark.parametrize("canaries", [1, 2])
def test_whoever_has_a_canary_keeps_it_while_its_share_grows(canaries: int) -> None:
    second = ",acme@second:10" if canaries == 2 else ""
    before = None
    for share in (0, 1, 5, 20, 55, 90):
        rest = 100 - share - (10 if second else 0)
        now = {
            user
            for user, ref in zip(
                USERS, arms(f"acme=acme@prod:{rest},acme@canary:{share}{second}"), strict=True
            )
            if ref == "acme@canary"
        }
        assert before is None or before <= now
        assert (len(now) > 0) == (share > 0)
        before = now


def test_a_growing_last_canary_takes_users_from_the_first_arm_alone() -> None:
    before = arms("acme=acme@prod:85,acme@one:10,acme@two:5")
    after = arms("acme=acme@prod:60,acme@one:10,acme@two:30")
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("acme@prod", "acme@two")}


def test_names_without_a_split_are_themselves_and_digests_can_be_arms() -> None:
    digest = "sha256:" + "ab" * 8
    splits = Splits.parse([f"acme=acme:0, acme@{digest}:40, base:60"])
    assert "acme" in splits and "other" not in splits
    assert splits.arm("other@v3", "anna") == "other@v3"
    assert {splits.arm("acme", user) for user in USERS} == {f"acme@{digest}", "base"}
    assert splits.arm("acme", "\udcff") in (f"acme@{digest}", "base"), "whatever a client sends as its user"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["acme"], "a split names its arms"),
        (["acme="], "a split names its arms"),
        (["acme=acme@prod"], "a split names its arms"),
        (["acme=acme@prod:95"], r"must be 100 percent together, and those of .* are 95"),
        (["acme=acme@prod:95,acme@canary:6"], "are 101"),
        (["acme=acme@prod:105,acme@canary:-5"], "got '-5'"),
        (["acme=acme@prod:nan,acme@canary:5"], "got 'nan'"),
        (["acme=acme@prod:1e2"], "got '1e2'"),
        (["acme=acme@prod:50,acme:50"], "acme@prod stands twice"),
        (["acme=acme@prod:100", "acme=acme@v1:100"], "acme is split twice"),
        (["acme=Acme@prod:100"], "a name must match"),
        (["base=acme@prod:100"], "reserved"),
        (["acme=acme@v01:100"], "counts from v1"),
    ],
)
def test_what_is_no_split_is_refused_in_one_line(texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Splits.parse(texts)
    assert "\n" not in str(caught.value)
