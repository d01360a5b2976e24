"""What is found is the longest beginning that its owner has, and nobody else's."""

from __future__ import annotations

import torch

from inlay.serving.kv_rows import Span
from inlay.serving.prefixes import BLOCK, Prefixes, Whose

MINE = Whose("acme", "sha256:1", b"1")


def span(ids: list[int]) -> Span:
    """Keys that say which tokens they are of."""
    keys = torch.tensor(ids, dtype=torch.float32).reshape(1, -1, 1)
    return Span(((keys, keys + 0.5),))


def put(prefixes: Prefixes, ids: list[int], whose: Whose = MINE) -> None:
    prefixes.keep(whose, ids, lambda: span(ids))


def found(prefixes: Prefixes, ids: list[int], whose: Whose = MINE) -> list[int] | None:
    held = prefixes.find(whose, ids)
    return None if held is None else held.layers[0][0].flatten().int().tolist()


def test_the_longest_known_beginning_is_found_to_the_token() -> None:
    prefixes = Prefixes(1 << 20)
    ids = list(range(50))
    put(prefixes, ids)
    put(prefixes, [*ids[:20], *range(100, 130)])
    assert found(prefixes, [*ids[:45], 7, 7]) == ids[:45]
    assert found(prefixes, [*ids[:20], *range(100, 119), 9]) == [*ids[:20], *range(100, 119)]
    assert found(prefixes, ids) == ids[:-1], "the last token is always computed"
    assert found(prefixes, [*ids, 1]) == ids
    assert found(prefixes, [*ids[: BLOCK - 1], 99, 99]) is None
    assert found(prefixes, [1, *ids]) is None


def test_against_a_naive_search() -> None:
    generator = torch.Generator().manual_seed(0)
    prefixes, kept = Prefixes(1 << 24), []
    for _ in range(300):
        n = int(torch.randint(1, 70, (1,), generator=generator))
        ids = torch.randint(0, 2, (n,), generator=generator).tolist()
        if kept and n % 2:
            ids = [*kept[n % len(kept)][: n // 2], *ids]
        expected = 0
        for before in kept:
            same = 0
            while same < min(len(before), len(ids)) and before[same] == ids[same]:
                same += 1
            expected = max(expected, min(same, len(ids) - 1) if same >= BLOCK else 0)
        got = found(prefixes, ids) or []
        # Within the last block the newest may share less than another.
        assert got == ids[: len(got)] and expected - len(got) < BLOCK and len(got) <= expected
        put(prefixes, ids)
        kept.append(ids)


def test_nothing_crosses_tenants_targets_or_gates() -> None:
    prefixes = Prefixes(1 << 20)
    ids = list(range(40))
    put(prefixes, ids)
    for other in (
        Whose("other", MINE.digest, MINE.voice),
        Whose(MINE.tenant, "sha256:2", MINE.voice),
        Whose(MINE.tenant, MINE.digest, b"2"),
    ):
        assert found(prefixes, ids, other) is None
    assert found(prefixes, ids) == ids[:-1]


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    each = span([0] * 20).nbytes
    prefixes = Prefixes(3 * each)
    rows = [[n] * 20 for n in range(5)]
    for row in rows[:3]:
        put(prefixes, row)
    assert found(prefixes, rows[0]) == rows[0][:-1]
    put(prefixes, rows[3])
    assert prefixes.nbytes == 3 * each and len(prefixes) == 3
    assert [found(prefixes, row) is not None for row in rows] == [True, False, True, True, False]
    put(prefixes, [9] * 100)
    assert found(prefixes, [9] * 100) is None and len(prefixes) == 3, "larger than all there is room for"


def test_what_is_gone_on_from_is_kept_once() -> None:
    prefixes = Prefixes(1 << 20)
    ids = list(range(64))
    for length in (20, 40, 64):
        put(prefixes, ids[:length])
    assert len(prefixes) == 1 and prefixes.nbytes == span(ids).nbytes
    prefixes.keep(MINE, ids[:30], _never)
    prefixes.keep(MINE, ids, _never)
    assert found(prefixes, [*ids[:25], 99]) == ids[:25]


def test_forgetting_a_digest_takes_all_of_it_and_no_more() -> None:
    prefixes = Prefixes(1 << 20)
    ids, other = list(range(40)), Whose("other", "sha256:2", b"")
    put(prefixes, ids)
    put(prefixes, ids, Whose("other", MINE.digest, b""))
    put(prefixes, ids, other)
    prefixes.forget(MINE.digest)
    assert found(prefixes, ids) is None and found(prefixes, ids, other) == ids[:-1]
    assert prefixes.nbytes == span(ids).nbytes and len(prefixes._found) == len(ids) // BLOCK


def test_no_memory_keeps_nothing() -> None:
    prefixes = Prefixes(0)
    prefixes.keep(MINE, list(range(40)), _never)
    assert found(prefixes, list(range(40))) is None


def _never() -> Span:
    raise AssertionError("it is known already")
