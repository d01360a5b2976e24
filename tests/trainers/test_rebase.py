"""A recorded run again on another base: from what was kept, refused for other data, compared by item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import inlay
from inlay.builtin.tasks import rows
from inlay.errors import InputError
from inlay.evals import Suite
from inlay.evals.inference import Base, load_base
from inlay.registry import Registry, Version
from inlay.registry.canonical import digest_of_json
from inlay.trainers.data import read_dataset
from inlay.trainers.kept_data import differing, keep, kept, rows_of
from inlay.trainers.pairs import read_pairs
from inlay.trainers.rebase import asked_of, rebase
from inlay.trainers.texts import read_texts

PROMPTS = ["Which number is larger, 14 or 52?", "Copy the word: lamp", "What is 3 plus 4?"]
QUICK: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "kl_batch_size": 2,
    "rank": 2,
    "alpha": 4.0,
}


def data(n: int = 24) -> list[dict[str, str]]:
    return rows("ticket-queue", "train", n, 0)


@pytest.fixture(scope="module")
def small() -> Suite:
    return Suite("small", Suite.load("general-v1").items[::50])


@pytest.fixture(scope="module")
def target() -> Suite:
    return Suite.of_rows("tickets-test", rows("ticket-queue", "test", 20, 0))


def trained(base: Base, store: Registry, small: Suite, target: Suite, **more: Any) -> Version:
    given = {"name": "tickets", "general": [small], "target": [target], "general_prompts": PROMPTS}
    settings = {**QUICK, **given, **more}
    return inlay.train(base, settings.pop("data", data()), store=store, **settings).version


def test_a_run_again_on_another_base(
    base: Base, other_base: Base, store: Registry, small: Suite, target: Suite
) -> None:
    old = trained(base, store, small, target, minimum=0.5, seed=3, max_steps=12)
    store.promote("tickets@v1", "prod")
    made = rebase("tickets@prod", other_base, data(), store=store, general_prompts=PROMPTS, why="base-next")
    new = made.version
    assert new.ref == "tickets@v2" and new.base.weights == other_base.fingerprint.weights
    assert store.aliases("tickets") == {"prod": "tickets@v1"}

    was, now = store.run_of(old), store.run_of(new)
    assert was is not None and now is not None
    assert now["settings"] == was["settings"] and now["settings"]["seed"] == 3
    assert now["declared"] == was["declared"] and now["dataset"] == was["dataset"]
    assert (now["rebased"]["ref"], now["rebased"]["digest"]) == ("tickets@v1", old.digest)
    assert asked_of(now) == asked_of(was) == sorted([*QUICK, "seed"])
    (event,) = [e for e in store.journal("tickets") if e.to_ref == "tickets@v2" and e.verb == "add"]
    assert "which is tickets@v1 trained again on another base: base-next" in event.sentence()

    report = made.report
    assert [(s.suite, s.role) for s in report.scores] == [("tickets-test", "target"), ("small", "general")]
    sides = [next(r for r in store.evals(version.digest, target.digest)).outcomes for version in (old, new)]
    counts = report.scores[0].counts
    assert counts.lost == sum(x and not y for x, y in zip(*sides, strict=True))  # type: ignore[union-attr]
    assert counts.gained == sum(y and not x for x, y in zip(*sides, strict=True))  # type: ignore[union-attr]
    bases = {r.base_weights: r.score for r in store.evals("base", target.digest)}
    assert report.scores[0].base_before == bases[old.base.weights]
    assert report.scores[0].base_after == bases[new.base.weights]
    lost = [store.reports(version.digest, "forgetting")[0]["lost"]["estimate"] for version in (old, new)]
    assert [row[0] for row in report.forgotten if row] == lost
    assert [cost.task_tokens for cost in report.cost] == [was["tokens"]["task"], now["tokens"]["task"]]
    assert store.reports(new.digest, "rebase") == [json.loads(json.dumps(report.to_dict()))]
    assert (
        "tickets@v2 on base-next scores" in report.verdict and "tickets@v1 on inlay-base-2m" in report.verdict
    )
    assert store.fsck() == []

    with pytest.raises(InputError, match="is for base-next already"):
        rebase("tickets@v2", other_base, data(), store=store)


def test_other_data_is_refused_with_both_digests(
    base: Base, other_base: Base, store: Registry, small: Suite, target: Suite, tmp_path: Path
) -> None:
    old = trained(base, store, small, target)
    known = read_dataset(data()).digest
    changed = [*data()[:-2], {"prompt": "Where does this go?", "completion": "billing"}]
    file = tmp_path / "tickets.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(InputError) as refused:
        rebase("tickets@v1", other_base, file, store=store, general_prompts=PROMPTS)
    said = refused.value.message
    assert known[:19] in said and read_dataset(changed).digest[:19] in said
    assert said.endswith("2 of 24 rows are missing, 1 are new") and "\n" not in said
    with pytest.raises(InputError, match="the same rows in another order"):
        rebase("tickets@v1", other_base, data()[::-1], store=store, general_prompts=PROMPTS)
    with pytest.raises(InputError, match="keeps no rows of what tickets@v1 was trained on") as none:
        rebase("tickets@v1", other_base, store=store)
    assert "24 rows" in str(none.value.fix)
    assert store.versions("tickets") == [old]


def test_kept_rows_need_no_file_and_defaults_are_the_new_base_s(
    base: Base, store: Registry, small: Suite, target: Suite, other_base_path: Path, tmp_path: Path
) -> None:
    """What was asked for by name stays, what the old base recommended gives way to what the new one does."""
    folder = tmp_path / "recommending"
    shutil.copytree(other_base_path, folder)
    (folder / "inlay.json").write_text('{"training_defaults": {"learning_rate": 0.0123, "rank": 7}}')
    trained(base, store, small, target, keep_data=True)
    made = rebase(
        "tickets@v1", load_base(folder), store=store, defaults=True, general_prompts=PROMPTS, max_steps=2
    )
    settings = made.result.run["settings"]
    assert (settings["learning_rate"], settings["rank"], settings["max_steps"]) == (0.0123, 2, 2)
    assert made.result.run["dataset"]["digest"] == read_dataset(data()).digest
    assert asked_of(made.result.run) == sorted(QUICK)


@pytest.mark.slow
def test_a_line_is_trained_again_from_its_beginning(
    base: Base, other_base: Base, store: Registry, small: Suite, target: Suite
) -> None:
    trained(base, store, small, target, keep_data=True)
    trained(base, store, small, target, keep_data=True, name=None, start="tickets@v1", rank=None, alpha=None)
    again = {"store": store, "general_prompts": PROMPTS}
    with pytest.raises(
        InputError, match="tickets@v2 was trained on from tickets@v1, which the new base needs"
    ):
        rebase("tickets@v2", other_base, **again)
    with pytest.raises(InputError, match="begins where tickets@v1 trained again ends, and tickets@v1 is not"):
        rebase("tickets@v2", other_base, start="tickets@v1", **again)
    with pytest.raises(InputError, match="tickets@v1 was not trained on from a version"):
        rebase("tickets@v1", other_base, start="tickets@v2", **again)
    first = rebase("tickets@v1", other_base, **again)
    second = rebase("tickets@v2", other_base, start=first.version, **again)
    assert second.version.ref == "tickets@v4"
    assert second.result.run["parent"] == {"ref": "tickets@v3", "digest": first.version.digest}
    (event,) = [e for e in store.journal("tickets") if e.to_ref == "tickets@v4"]
    assert "tickets@v2 trained again on another base, trained on from tickets@v3" in event.sentence()


def test_what_cannot_be_trained_again(
    base: Base, other_base: Base, store: Registry, small: Suite, target: Suite, tmp_path: Path
) -> None:
    version = trained(base, store, small, target)
    shutil.copytree(version.path, tmp_path / "foreign")
    store.add("foreign", tmp_path / "foreign", base=base.fingerprint)
    with pytest.raises(InputError, match="foreign@v1 has no training record"):
        rebase("foreign@v1", other_base, data(), store=store)
    store.lock("acme", {"compose": {"stack": ["tickets@v1"]}})
    with pytest.raises(InputError, match="acme@v1 is a variant's lock"):
        rebase("acme@v1", other_base, data(), store=store)
    store.yank("tickets@v1", why="bad")
    with pytest.raises(InputError, match="tickets@v1 was yanked"):
        rebase("tickets@v1", other_base, data(), store=store)


def test_kept_rows_read_back_as_the_same_data(store: Registry, tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    examples = read_dataset([*data(3), {"messages": chat}])
    pairs = read_pairs(
        [
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": chat[:2], "chosen": "b", "rejected": "c"},
        ]
    )
    texts = read_texts(["one\ndocument", "another"])
    for given, reader in ((examples, read_dataset), (pairs, read_pairs), (texts, read_texts)):
        assert reader(rows_of(given)).digest == given.digest


def test_data_is_kept_once(base: Base, store: Registry, small: Suite, target: Suite) -> None:
    version = trained(base, store, small, target)
    dataset = read_dataset(data())
    found = kept(store, version)
    assert found is not None and found.rows is None and list(found.digests) == dataset.row_digests
    keep(store, version, dataset)
    assert len(store.reports(version.digest, "data")) == 1
    keep(store, version, dataset, dataset)
    keep(store, version, dataset, dataset)
    assert len(store.reports(version.digest, "data")) == 2
    again = kept(store, version)
    assert again is not None and again.rows is not None
    assert digest_of_json(list(again.rows)) == digest_of_json(rows_of(dataset))
    store.purge([version.ref], why="asked to")
    with pytest.raises(InputError, match="purged"):
        rebase(version.ref, base, store=store)


def test_rows_that_differ_are_counted_with_their_copies() -> None:
    assert differing(("a", "a", "b"), ("a", "c", "d")) == (2, 2)
    assert differing(("a", "b"), ("b", "a")) == (0, 0)
