"""Turns among tenants, and batches of alike lengths."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.serving.fair_queue import FairQueue


@dataclass(frozen=True)
class Item:
    tenant: str
    tokens: int
    number: int = 0


def filled(*items: Item) -> FairQueue[Item]:
    waiting: FairQueue[Item] = FairQueue()
    for item in items:
        waiting.put(item)
    return waiting


def test_tenants_take_turns_and_each_is_first_come_first_served() -> None:
    many = [Item("loud", 10, n) for n in range(6)]
    waiting = filled(*many, Item("quiet", 10), Item("quiet", 10, 1))
    order = [waiting.take(1, 1000)[0] for _ in range(8)]
    assert order == [many[0], Item("quiet", 10), many[1], Item("quiet", 10, 1), *many[2:]]
    assert len(waiting) == 0 and waiting.take(4, 1000) == []


def test_a_batch_holds_alike_lengths_within_its_tokens_and_passes_nobody_over_for_ever() -> None:
    long = Item("a", 400)
    waiting = filled(*[Item("a", 20, n) for n in range(3)], long, *[Item("a", 30, n) for n in range(3, 9)])
    first = waiting.take(16, 120)
    assert [item.number for item in first] == [0, 1, 2, 3] and long not in first
    assert waiting.take(16, 120) == [long], "alone, and more than the tokens that a batch may hold"
    assert [item.number for item in waiting.take(2, 120)] == [4, 5]
    assert [item.number for item in waiting.take(16, 120)] == [6, 7, 8]


def test_who_is_removed_is_not_taken() -> None:
    first, second = Item("a", 5), Item("b", 5)
    waiting = filled(first, second)
    assert waiting.remove(first) and not waiting.remove(first) and not waiting.remove(Item("c", 1))
    assert [*waiting] == [second] and waiting.take(9, 99) == [second]
    assert waiting.take(0, 99) == []
