"""What differs between two versions or two locks, against counts made by hand and scipy's figures."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from difference_fakes import MARCH, MAY, flipped, keep, outcomes, plain_json, story
from registry_fakes import make_adapter, make_base, score, snapshot
from scipy import optimize, stats

import inlay
from inlay.errors import InputError, IntegrityError
from inlay.evals.comparing import changes, difference
from inlay.evals.difference import Change
from inlay.evals.score_changes import score_changes
from inlay.registry import EvalRecord, Lock, Registry, digest_of_json

GUARD = {"forget": 0.05, "gain": 0.1, "suites": {"general": ["general-v1"], "target": ["legal-test"]}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INLAY_CACHE", str(folder / "cache"))
        patch.setenv("INLAY_USER", "anna")
        story(folder).close()
    return folder


@pytest.fixture
def registry(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The story, in a copy of its own."""
    monkeypatch.setenv("INLAY_USER", "anna")
    shutil.copytree(made / "store", tmp_path / "store")
    with inlay.Registry.open(tmp_path / "store") as registry:
        yield registry


def as_dict(listed: tuple[Change, ...]) -> dict[str, tuple[Any, Any]]:
    return {change.what: (change.before, change.after) for change in listed}


def tango_oracle(n: int, lost: int, gained: int) -> tuple[float, float]:
    """Tango's interval with the nuisance rate maximised numerically instead of in closed form."""

    def statistic(delta: float) -> float:
        def against(q: float) -> float:  # minus the log-likelihood of (lost, gained, rest)
            rest = 1.0 - 2.0 * q - delta
            return -(
                stats.multinomial.logpmf([lost, gained, n - lost - gained], n, [q, q + delta, rest])
                if min(q, q + delta, rest) > 0
                else -1e12
            )

        low, high = max(0.0, -delta), (1.0 - delta) / 2.0
        q = optimize.minimize_scalar(
            against, bounds=(low, high), method="bounded", options={"xatol": 1e-12}
        ).x
        return (gained - lost - n * delta) / math.sqrt(n * (2.0 * q + delta * (1.0 - delta)))

    z, estimate = stats.norm.ppf(0.975), (gained - lost) / n
    return (
        optimize.brentq(lambda d: statistic(d) - z, -0.9, estimate),
        optimize.brentq(lambda d: statistic(d) + z, estimate, 0.9),
    )


def test_scores_against_scipy(registry: Registry) -> None:
    found = {s.suite: s for s in difference("legal@v1", "legal@v2", store=registry).scores}
    assert list(found) == ["general-v1", "legal-test"]
    target, general = found["legal-test"], found["general-v1"]
    assert (target.n, target.won, target.lost, target.delta) == (200, 40, 12, 28 / 200)
    assert (general.n, general.won, general.lost, general.delta) == (400, 0, 30, -30 / 400)
    right = sum(outcomes(200, 0.6, 5))
    assert target.before == right / 200 and target.after == (right + 28) / 200
    assert target.base == sum(outcomes(200, 0.1, 7)) / 200
    p = {name: stats.binomtest(min(s.won, s.lost), s.won + s.lost).pvalue for name, s in found.items()}
    for name, suite in found.items():
        assert suite.p == pytest.approx(p[name], rel=1e-9)
        assert (suite.low, suite.high) == pytest.approx(
            tango_oracle(suite.n, suite.lost, suite.won), abs=1e-5
        )
    # Holm over two: the smaller p doubled, the larger never below it.
    small, large = sorted(p, key=lambda name: p[name])
    assert found[small].p_adjusted == pytest.approx(2 * p[small], rel=1e-9)
    assert found[large].p_adjusted == pytest.approx(max(2 * p[small], p[large]), rel=1e-9)
    assert target.sure and general.sure


def test_splits_and_skills_are_the_items_of_the_suite(registry: Registry) -> None:
    general = difference("legal@v1", "legal@v2", store=registry).scores[0]
    before = outcomes(400, 0.9, 6)
    after = flipped(before, 30, 0)
    by_skill = {f"skill{s}": (sum(before[s::4]) - sum(after[s::4])) for s in range(4)}
    assert {part.name: part.counts.lost for part in general.skills} == by_skill
    assert {part.name: part.held_out for part in general.skills} == {
        "skill0": True,
        "skill1": True,
        "skill2": False,
        "skill3": False,
    }
    order = sorted(general.skills, key=lambda p: (not p.held_out, p.counts.delta, p.name))
    assert list(general.skills) == order, "held-out ones first, the worst loss first"
    assert [part.name for part in general.splits] == ["held out", "protected"]
    held_out = general.held_out
    assert held_out is not None and held_out.counts.n == 200
    assert held_out.counts.lost == by_skill["skill0"] + by_skill["skill1"]
    raw = {name: stats.binomtest(0, lost).pvalue for name, lost in by_skill.items()}
    ranked = sorted(raw, key=lambda name: raw[name])
    running = 0.0
    for place, name in enumerate(ranked):
        running = max(running, min(1.0, (4 - place) * raw[name]))
        part = next(part for part in general.skills if part.name == name)
        assert part.p_adjusted == pytest.approx(running, rel=1e-9)


def test_the_base_beside_is_the_one_on_the_same_items_and_prompt(registry: Registry) -> None:
    for name, prompt in (("alien", "sha256:" + "8" * 64), ("plain", None)):
        keep(registry, name, 50)
        for ref in ("legal@v1", "legal@v2"):
            score(registry, ref, name, (True,) * 50)
        record = registry.evals("legal@v1", name)[0]
        registry.put_eval(replace(record, subject="base", base_prompt=prompt or record.base_prompt))
    found = {s.suite: s.base for s in difference("legal@v1", "legal@v2", store=registry).scores}
    assert found["plain"] == 1.0 and found["alien"] is None


def test_graded_outcomes_use_the_paired_t(registry: Registry) -> None:
    keep(registry, "essays", 80)
    random = np.random.default_rng(3)
    x = random.random(80)
    y = np.clip(x + random.normal(0.03, 0.1, 80), 0, 1)
    score(registry, "legal@v1", "essays", tuple(map(float, x)))
    score(registry, "legal@v2", "essays", tuple(map(float, y)))
    found = next(s for s in difference("legal@v1", "legal@v2", store=registry).scores if s.suite == "essays")
    oracle = stats.ttest_rel(y, x)
    interval = oracle.confidence_interval(0.95)
    assert found.delta == pytest.approx(float(np.mean(y - x)), abs=1e-12)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert (found.won, found.lost) == (int((y > x).sum()), int((y < x).sum()))


def test_one_graded_item_has_no_interval(registry: Registry) -> None:
    keep(registry, "single", 1)
    score(registry, "legal@v1", "single", (0.25,))
    score(registry, "legal@v2", "single", (0.5,))
    found = next(s for s in difference("legal@v1", "legal@v2", store=registry).scores if s.suite == "single")
    assert (found.delta, found.low, found.high, found.p, found.p_adjusted) == (0.25, None, None, None, None)
    assert not found.sure


def test_what_cannot_be_compared_is_named_with_the_reason(registry: Registry) -> None:
    for name in ("one-sided", "other-dtype", "other-metric", "changed"):
        keep(registry, name, 20)
    right = (True,) * 20
    score(registry, "legal@v1", "one-sided", right)
    score(registry, "legal@v1", "other-dtype", right, protocol={"dtype": "float32", "template": "chat"})
    score(registry, "legal@v2", "other-dtype", right, protocol={"dtype": "bfloat16", "template": "chat"})
    score(registry, "legal@v1", "other-metric", right)
    score(registry, "legal@v2", "other-metric", right, metric="contains/1")
    score(registry, "legal@v1", "changed", right)
    keep(registry, "changed", 20, skills=2)
    score(registry, "legal@v2", "changed", right)
    found = difference("legal@v1", "legal@v2", store=registry)
    reasons = {suite.suite: suite.reason for suite in found.not_comparable}
    assert set(reasons) == {"one-sided", "other-dtype", "other-metric", "changed"}
    assert reasons["one-sided"] == (
        "only legal@v1 was scored on it; `inlay eval legal@v2 --suite one-sided` would measure it"
    )
    assert reasons["other-dtype"] == "dtype was 'float32' for legal@v1 and 'bfloat16' for legal@v2"
    assert reasons["other-metric"] == "the metric was exact_match/1 for legal@v1 and contains/1 for legal@v2"
    assert reasons["changed"].startswith("two contents under one name (")
    assert {s.suite for s in found.scores} == {"general-v1", "legal-test"}


def test_two_protocols_of_one_suite_are_told_apart(registry: Registry) -> None:
    for ref, lost in (("legal@v1", 0), ("legal@v2", 5)):
        answers = flipped((True,) * 200, lost, 0)
        score(registry, ref, "legal-test", answers, protocol={"template": "chat", "dtype": "bfloat16"})
    rows = [s for s in difference("legal@v1", "legal@v2", store=registry).scores if s.suite == "legal-test"]
    assert {(s.label, s.lost) for s in rows} == {
        ("legal-test (dtype bfloat16)", 5),
        ("legal-test (dtype None)", 12),
    }


def test_configuration_data_and_adapter(registry: Registry) -> None:
    found = difference("legal@v1", "legal@v2", store=registry)
    assert as_dict(found.configuration) == {
        "lora_alpha": (4, 8),
        "lora_dropout": (0.1, None),
        "r": (2, 4),
        "rank_pattern.q_proj": (None, 4),
        "use_rslora": (None, True),
    }, "the order of target_modules and a null revision say nothing"
    assert [c.how for c in found.configuration] == ["changed", "removed", "changed", "added", "added"]
    adapter = as_dict(found.adapter)
    assert adapter["rank"] == (2, 4) and adapter["licence"] == (None, "mit")
    assert adapter["parameters"] == (128, 256), "four modules of two 8 x r factors"
    assert "targets" not in adapter
    data = as_dict(found.data)
    assert data == {
        "dataset.digest": (MARCH["digest"], MAY["digest"]),
        "dataset.name": ("tickets-march", "tickets-may"),
        "dataset.rows": (1000, 1600),
        "settings.learning_rate": (0.001, 0.01),
    }
    files = {c.what: c.how for c in found.files}
    assert files == {
        "README.md": "added",
        "adapter_config.json": "changed",
        "adapter_model.safetensors": "changed",
    }
    assert "a customer's own words" not in str(found.to_dict())


def test_changes_of_plain_objects() -> None:
    before = {"a": 1, "b": ["x", "y"], "c": None, "d": {"e": 1}, "f": True, "g": [1, 2]}
    after = {"a": 1.0, "b": ["y", "x"], "d": {"e": 2}, "f": 1, "g": [2, 1]}
    found = {c.what: (c.how, c.before, c.after) for c in changes(before, after)}
    assert found == {
        "d.e": ("changed", 1, 2),
        "f": ("changed", True, 1),
        "g": ("changed", [1, 2], [2, 1]),
    }


def test_what_has_no_record_is_said(registry: Registry) -> None:
    found = difference("style@v1", "legal@v1", store=registry)
    assert found.data == ()
    assert found.notes == ("style@v1 has no training record: its data cannot be compared",)


def lock(registry: Registry, recipe: Any, name: str = "acme") -> Lock:
    return registry.lock(name, recipe)


def test_locks_by_member_and_recipe(registry: Registry) -> None:
    stack = {"stack": ["legal@v1", {"use": "style@v1", "weight": 0.6}]}
    lock(registry, stack)
    lock(
        registry,
        {"stack": [{"use": "style@v1", "weight": 1.0}, "legal@v2"], "guard": {"forget": 0.02, **_suites()}},
    )
    found = difference("acme@v1", "acme@v2", store=registry)
    members = {m.name: m for m in found.members}
    assert members["legal"].how == ("pinned anew",)
    assert members["style"].how == ("weight",), "another place in the same stack is no move"
    assert as_dict(found.recipe)["guard.forget"] == (None, 0.02)

    lock(
        registry,
        {"stack": [{"merge": ["legal@v2", "style@v1"], "method": "ties", "params": {"density": 0.4}}]},
    )
    found = difference("acme@v2", "acme@v3", store=registry)
    assert {m.name: m.how for m in found.members} == {"legal": ("moved",), "style": ("moved",)}
    recipe = as_dict(found.recipe)
    assert recipe["at place 0: method"] == (None, "ties")
    assert recipe["at place 0: params.density"] == (None, 0.4)

    lock(registry, {"route": {"by": "request", "experts": ["legal@v2"]}})
    found = difference("acme@v3", "acme@v4", store=registry)
    assert {m.name: m.how for m in found.members} == {"legal": ("moved",), "style": ("removed",)}
    assert as_dict(found.recipe)["operator"] == ("stack", "route")
    assert as_dict(found.recipe)["by"] == (None, "request")

    twice = lock(registry, {"stack": ["legal@v1", "legal@v1", "style@v1"]})
    found = difference("acme@v1", twice, store=registry)
    assert [m.how for m in found.members] == [(), ("weight",), ("added",)]


def _suites() -> dict[str, Any]:
    return {"suites": {"general": ["general-v1"]}}


def test_a_version_is_not_compared_with_a_lock(registry: Registry) -> None:
    lock(registry, {"stack": ["legal@v1"]})
    for pair in (("legal@v1", "acme@v1"), ("acme@v1", "legal@v1")):
        with pytest.raises(InputError) as error:
            difference(*pair, store=registry)
        assert "legal@v1 is a version and acme@v1 a lock" in error.value.message
        assert error.value.fix


def test_the_same_bytes(registry: Registry) -> None:
    registry.promote("legal@v1", "prod")
    found = difference("legal@v1", "legal", store=registry)
    assert found.same and found.scores == () and found.configuration == ()
    assert "Both are the same bytes." in found.text(80)


def test_another_base(registry: Registry, made: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=9)
    version = registry.add("legal", make_adapter(tmp_path / "v3", seed=3), base=other)
    score(registry, version.digest, "legal-test", (True,) * 200, like=version.ref)
    found = difference("legal@v1", "legal@v3", store=registry)
    assert set(as_dict(found.base)) == {"name", "weights"}
    assert found.scores == ()
    assert {s.suite: s.reason for s in found.not_comparable}["legal-test"] == "the bases are not the same"
    assert "They were made for different bases." in found.text(100)


def test_guards_asked_now_and_verdicts_kept_and_nothing_written(registry: Registry) -> None:
    registry.set_guard("legal@prod", GUARD)
    registry.promote("legal@v1", "prod", force=True, why="first")
    with pytest.raises(inlay.GuardRefused):
        registry.promote("legal@v2", "prod")
    before = snapshot(registry)
    found = difference("legal@v1", "legal@v2", store=registry)
    assert snapshot(registry) == before
    (standing,) = found.standings
    assert standing.alias == "prod" and standing.verdict is not None and not standing.verdict.passed
    with pytest.raises(inlay.GuardRefused) as refused:
        registry.promote("legal@v2", "prod")
    assert "; ".join(standing.verdict.reasons) in refused.value.message, "what it says is what promote says"
    assert [(s.ref, s.passed, s.forced) for s in found.said] == [
        ("legal@v2", False, False),
        ("legal@v1", False, True),
    ]
    assert "would REFUSE it" in found.text(100)
    assert registry.verdict("legal@v2", "staging") is None, "nothing guards it"

    registry.yank("legal@v2", why="hallucinates clauses")
    (standing,) = difference("legal@v1", "legal@v2", store=registry).standings
    assert standing.verdict is None and standing.note == "legal@v2 is yanked and cannot be promoted"


def test_a_locks_own_guard_is_asked_too(registry: Registry) -> None:
    lock(registry, {"stack": ["legal@v1"]})
    lock(registry, {"stack": ["legal@v2"], "guard": {"forget": 0.05, **_suites()}})
    (standing,) = difference("acme@v1", "acme@v2", store=registry).standings
    assert standing.alias == "prod" and standing.verdict is not None and not standing.verdict.passed
    assert difference("acme@v2", "acme@v1", store=registry).standings == ()


def test_purged_bytes_are_named_and_the_rest_is_compared(registry: Registry) -> None:
    registry.purge(["legal@v1"], why="a customer asked for it")
    found = difference("legal@v1", "legal@v2", store=registry)
    assert found.notes == ("legal@v1 was purged, its bytes are gone: its files cannot be compared",)
    assert found.configuration == () and found.data == () and as_dict(found.adapter)["rank"] == (2, 4)
    assert [s.suite for s in found.scores] == ["general-v1", "legal-test"]
    assert "purged" in found.text(80)


def test_bytes_that_changed_are_an_error(registry: Registry) -> None:
    version = registry.resolve("legal@v1")
    digest = {f["path"]: f["sha256"] for f in plain_json(_manifest(registry, version.digest))}
    file = registry.path / "objects" / "sha256"
    hexadecimal = digest["adapter_config.json"].removeprefix("sha256:")
    path = file / hexadecimal[:2] / hexadecimal
    path.chmod(0o644)
    path.write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        difference("legal@v1", "legal@v2", store=registry)


def _manifest(registry: Registry, digest: str) -> Any:
    import json

    return json.loads(registry.get_object(digest))


def test_outcomes_that_do_not_fit_their_suite_are_an_error(registry: Registry) -> None:
    suite = registry.suite("legal-test")
    record = registry.evals("legal@v1", "legal-test")[0]
    detail = {"template": "other"}
    for ref in ("legal@v1", "legal@v2"):
        short = replace(
            record,
            subject=registry.resolve(ref).digest,
            outcomes=(True,) * 7,
            n=7,
            protocol=digest_of_json(detail),
            protocol_detail=detail,
        )
        registry.put_eval(short)
    assert isinstance(record, EvalRecord) and suite.n == 200
    first, second = (registry.resolve(ref).digest for ref in ("legal@v1", "legal@v2"))
    with pytest.raises(IntegrityError, match="200 items, its score 7 outcomes"):
        score_changes(registry, first, second)


@pytest.mark.parametrize("width", [120, 100, 80, 60, 40, 24])
def test_the_text_fits_and_cannot_steer_the_terminal(registry: Registry, made: Path, width: int) -> None:
    evil = "fine\x1b[2J\nforged line \u202e"
    registry.set_guard("legal@prod", GUARD, why=evil)
    with pytest.raises(inlay.GuardRefused):
        registry.promote("legal@v2", "prod", why=evil)
    registry.add(
        "legal",
        make_adapter(made / "evil", seed=4, config={"revision": evil}),
        base=made / "base",
        why=evil,
        run={"dataset": {"name": evil, "rows": 3, "digest": "sha256:" + "4" * 64}},
    )
    for pair in (("legal@v1", "legal@v2"), ("legal@v2", "legal@v3")):
        text = difference(*pair, store=registry).text(width)
        assert max(map(len, text.splitlines())) <= width
        assert all(c == "\n" or c.isprintable() for c in text)
        assert not any(line.startswith("forged") for line in text.split("\n"))


def test_the_figures_of_the_text_are_those_of_the_record(registry: Registry) -> None:
    text = difference("legal@v1", "legal@v2", store=registry).text(100)
    low, high = tango_oracle(200, 12, 40)
    assert (
        f"legal-test is up 14.0 points (95% {100 * low:.1f} to {100 * high:.1f}), more than chance." in text
    )
    low, high = tango_oracle(400, 30, 0)
    assert f"general-v1 is down 7.5 points (95% {-100 * high:.1f} to {-100 * low:.1f})" in text
    assert "Trained on other data: tickets-march (1,000 rows) → tickets-may (1,600 rows)." in text
    assert "target_modules" not in text and "licence: + mit" in text


def test_the_record_is_plain_json(registry: Registry) -> None:
    lock(registry, {"stack": ["legal@v1"]})
    lock(registry, {"stack": ["legal@v2", "style@v1"]})
    for pair in (("legal@v1", "legal@v2"), ("acme@v1", "acme@v2")):
        found = difference(*pair, store=registry).to_dict()
        assert plain_json(found)["b"]["ref"] == pair[1]
        assert found["schema"] == 1 and found["norms"] is None


def test_no_torch_is_imported(registry: Registry) -> None:
    code = (
        "import sys, inlay; found = inlay.diff('legal@v1', 'legal@v2', store=sys.argv[1], norms=False);"
        "assert found.scores and found.text(80);"
        "sys.exit(len({'torch', 'scipy', 'numpy', 'transformers', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(registry.path)], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
