"""Owners, descriptions, tags: journaled, replayed, found again; and lists that come in pages."""

from __future__ import annotations

import pytest
from registry_fakes import put_suite, score, snapshot

from inlay.errors import InputError, ReferenceNotFound
from inlay.registry import Registry


def test_what_is_said_last_holds_and_all_of_it_is_kept(three: Registry) -> None:
    three.describe("legal", owner="legal-team", description="clauses", tag=["gdpr", "stage=pilot"])
    three.describe("legal", description="clauses and terms", untag=["stage=pilot"], tag=["stage=live"])
    three.describe("legal@v2", description="more data", tag=["reviewed"], why="audit")
    about = three.about("legal")
    assert (about.kind, about.owner, about.description) == ("adapter", "legal-team", "clauses and terms")
    assert about.tags == ("gdpr", "stage=live")
    assert about.versions[2].tags == ("reviewed",) and about.versions[2].description == "more data"
    sentences = [event.sentence() for event in three.journal("legal") if event.verb == "describe"]
    assert sentences[0].endswith("anna described legal@v2 (a new description, tagged reviewed): audit")
    assert "no longer tagged stage=pilot" in sentences[1]
    assert "described legal (owner legal-team, a new description, tagged gdpr, stage=pilot)" in sentences[2]
    row = next(row for row in three.names() if row.name == "legal")
    assert (row.owner, row.description, row.tags) == ("legal-team", "clauses and terms", about.tags)


def test_saying_what_is_said_already_writes_no_row(three: Registry) -> None:
    assert three.describe("legal", owner="anna") is None  # who registered it first owns it
    assert three.describe("legal", tag=["x"]) is not None
    head = three.journal_head()
    assert three.describe("legal", tag=["x"], untag=["never-there"]) is None
    assert three.journal_head() == head


def test_names_and_versions_are_found_by_tag_and_owner(three: Registry) -> None:
    three.describe("style@v1", tag=["gdpr"])
    three.describe("legal", owner="legal-team", tag=["core"])
    assert [row.name for row in three.names(tag="gdpr")] == ["style"]
    assert [row.name for row in three.names(owner="legal-team")] == ["legal"]
    assert [row.name for row in three.names(owner="anna")] == ["style"]
    assert [row.name for row in three.names(owner="legal-team", tag="gdpr")] == []
    assert [v.ref for v in three.versions("style", tag="gdpr")] == ["style@v1"]
    three.describe("style@v1", untag=["gdpr"])
    assert three.names(tag="gdpr") == [] and three.versions("style", tag="gdpr") == []


@pytest.mark.parametrize(
    ("ref", "said", "match"),
    [
        ("legal@prod", {"tag": ["x"]}, "an exact version is described"),
        ("legal@v2", {"owner": "x"}, "an owner is of a name"),
        ("legal", {"tag": ["Not A Tag"]}, "a tag is a word"),
        ("legal", {"tag": ["x\x1b[2J"]}, r"a tag is a word or word=value, got 'x\\x1b\[2J'"),
        ("legal", {"description": "x" * 2001}, "at most 2000 characters"),
        ("legal", {"tag": [f"t{i}" for i in range(65)]}, "at most 64 tags"),
    ],
)
def test_slips_are_named_and_change_nothing(
    three: Registry, ref: str, said: dict[str, object], match: str
) -> None:
    before = snapshot(three)
    with pytest.raises(InputError, match=match):
        three.describe(ref, **said)  # type: ignore[arg-type]
    assert snapshot(three) == before
    with pytest.raises(ReferenceNotFound, match="legal"):
        three.describe("legl", tag=["x"])


def test_pages_follow_each_other_without_gap_or_overlap(three: Registry) -> None:
    for i in range(5):
        three.lock(f"variant-{i}", {"stack": ["legal@v1", {"use": "style@v1", "weight": 1 + i}]})
    digest = put_suite(three, "general")
    for number in (1, 2, 3):
        score(three, f"legal@v{number}", "general", (True, False, True, True))

    def pages(first: list, more) -> list[list]:  # type: ignore[no-untyped-def,type-arg]
        found = [first]
        while found[-1]:
            found.append(more(found[-1][-1]))
        return found

    names = pages(three.names(limit=3), lambda last: three.names(limit=3, after=last.name))
    assert [[row.name for row in page] for page in names] == [
        ["legal", "style", "variant-0"],
        ["variant-1", "variant-2", "variant-3"],
        ["variant-4"],
        [],
    ]
    versions = pages(
        three.versions("legal", limit=2), lambda last: three.versions("legal", limit=2, before=last.number)
    )
    assert [[v.number for v in page] for page in versions] == [[3, 2], [1], []]
    rows = pages(three.journal(limit=4), lambda last: three.journal(limit=4, before=last.seq))
    assert [e.seq for page in rows for e in page] == list(range(len(three.journal()), 0, -1))
    evals = pages(
        three.evals(suite=digest, limit=2), lambda last: three.evals(suite=digest, limit=2, before=last.id)
    )
    assert [len(page) for page in evals] == [2, 1, 0]
    assert [e.id for page in evals for e in page] == [e.id for e in three.evals(suite="general")]


def test_the_list_shows_what_each_alias_points_to(three: Registry) -> None:
    three.promote("legal@v1", "prod")
    three.promote("legal@v2", "prod")
    three.promote("legal@v3", "canary")
    three.promote("style@v1", "prod")
    three.rollback("style@prod", why="gone", otherwise="disable")
    rows = {row.name: dict(row.aliases) for row in three.names()}
    assert rows == {
        "legal": {"canary": "legal@v3", "prod": "legal@v2"},
        "style": {"prod": "disabled"},
    }
