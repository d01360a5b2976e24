"""The journal: chained, ordered by integers, honest about edits, safe to print."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.errors import InputError
from inlay.registry import Event, Registry, canonical
from inlay.registry import journal as rows


def test_every_change_is_one_row_that_reads_as_english(three: Registry) -> None:
    three.promote("legal@v1", "prod", why="first")
    three.promote("legal@v2", "prod")
    three.rollback("legal@prod", why="hallucinates clauses", who="bert")
    three.set_guard("legal@prod", None)
    three.lock("acme", "legal@v1")
    said = [e.sentence() for e in reversed(three.journal())]
    assert [s.split(" ", 3)[3] for s in said] == [
        "anna registered legal@v1",
        "anna registered legal@v2",
        "anna registered legal@v3",
        "anna registered style@v1",
        "anna registered style@v2",
        "anna promoted legal@prod to legal@v1 (before: nothing): first",
        "anna promoted legal@prod to legal@v2 (before: legal@v1)",
        "bert rolled legal@prod back from legal@v2 to legal@v1: hallucinates clauses",
        "anna removed the guard of legal@prod",
        "anna locked acme@v1",
    ]
    assert [e.seq for e in three.journal()] == list(range(10, 0, -1))
    assert [e.seq for e in three.journal("legal", limit=2)] == [9, 8]
    at = [e.at for e in three.journal()]
    assert at == sorted(at, reverse=True) and len(set(at)) == len(at)


def test_time_never_goes_back_even_if_the_clock_does(
    three: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = three.journal()[0].at
    monkeypatch.setattr(rows, "now", lambda: "2001-01-01T00:00:00.000000Z")
    first, second = three.promote("legal@v1", "prod"), three.promote("legal@v2", "prod")
    assert last < first.at < second.at
    assert (datetime.fromisoformat(second.at) - datetime.fromisoformat(last)).total_seconds() < 0.001
    assert three.fsck() == []


@pytest.mark.parametrize(
    "why",
    [
        "'; DROP TABLE journal; --",
        "\x1b[2J\x1b[31mgone",
        "one\ntwo\r\nthree",
        "\u202egnirts",
        "\x00",
        "\ud800",
        "数 👍",
    ],
)
def test_any_text_is_kept_and_printed_safely(why: str, three: Registry) -> None:
    event = three.promote("legal@v1", "prod", why=why, who=f"x{why}")
    kept = three.journal("legal")[0]
    assert kept == event
    if why != "\ud800":
        assert kept.why == why
    sentence = kept.sentence()
    assert len(sentence.splitlines()) == 1 and "\x1b" not in sentence and "\u202e" not in sentence
    assert three.fsck() == []


def test_long_reasons_are_refused(three: Registry) -> None:
    with pytest.raises(InputError, match="at most 4096 characters"):
        three.promote("legal@v1", "prod", why="x" * 5000)


def tampered(registry: Registry, *statements: str) -> list[str]:
    """What fsck says after somebody dropped the triggers, changed the file and put them back."""
    connection = sqlite3.connect(registry.path / "registry.db")
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for sql in statements:
        connection.execute(sql)
    for _, sql in triggers:
        connection.execute(sql)
    connection.commit()
    connection.close()
    return registry.fsck()


def test_edits_break_the_chain_and_are_named(three: Registry) -> None:
    for n in (1, 2, 3):
        three.promote(f"legal@v{n}", "prod", why="ok")
    assert three.fsck() == []
    head = three.journal_head()
    assert head[0] == 8 and three.fsck(head) == []
    assert tampered(three, "UPDATE journal SET why = 'never happened' WHERE seq = 7") == [
        "journal: row 7 was edited, its hash is not that of its content"
    ]
    assert tampered(three, "UPDATE journal SET why = 'ok' WHERE seq = 7") == []
    assert tampered(three, "DELETE FROM journal WHERE seq = 7") == [
        "journal: rows 7 to 7 are missing",
        "journal: row 8 does not follow the row before it",
    ]


def test_a_cut_tail_shows_against_an_exported_head(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    head = three.journal_head()
    assert tampered(three, "DELETE FROM journal WHERE seq = 7") == []
    assert three.fsck(head) == ["journal: row 7, which the exported head names, is gone: the tail was cut"]
    three.promote("legal@v3", "prod")
    assert three.fsck(head) == [
        "journal: row 7 is not the one that the exported head names: the chain was written anew"
    ]


def test_a_row_rehashed_after_an_edit_is_found_by_the_next(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    row = dict(three._store.db.row("SELECT * FROM journal WHERE seq = 3") or {})
    row["why"] = "forged"
    found = tampered(three, f"UPDATE journal SET why = 'forged', hash = '{rows.row_hash(row)}' WHERE seq = 3")
    assert found == ["journal: row 4 does not follow the row before it"]


def test_a_version_swapped_under_its_number_is_found(three: Registry) -> None:
    found = tampered(three, "UPDATE versions SET number = 9 - number WHERE name = 'style' AND number IN (1)")
    assert "style@v8: the journal never mentions it" in found
    assert "style@v1: the journal mentions it, its row is gone" in found


MOVE = st.sampled_from(["promote", "rollback", "disable"])


@given(st.lists(st.tuples(MOVE, st.integers(0, 5)), max_size=25))
def test_replaying_moves_gives_the_stack_of_a_naive_list(moves: list[tuple[str, int]]) -> None:
    """Oracle: a Python list that is pushed to and cut."""
    empty = Event(0, "", "", "", "a", "prod", True, None, None, None, None, None, None, "", None, {}, "", "")
    events: list[Event] = []
    stack: list[int] = []
    for seq, (verb, depth) in enumerate(moves, start=1):
        if verb == "rollback":
            if len(stack) < 2:
                continue
            stack = stack[: 1 + depth % (len(stack) - 1)]
            events.append(replace(empty, seq=seq, verb=verb, detail={"entry": stack[-1]}))
        else:
            stack.append(seq)
            events.append(replace(empty, seq=seq, verb=verb))
        assert [e.seq for e in rows.replay(events)] == stack


def test_rows_as_json(three: Registry) -> None:
    event = three.promote("legal@v1", "prod")
    check: Callable[[object], str] = canonical
    assert '"to_ref":"legal@v1"' in check(event.to_dict())
