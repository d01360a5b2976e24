"""Going on from a version: the start is the version exactly, what cannot be is refused, its tasks are
measured beside the new ones, and the registry says where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trainers_fakes import bits

import inlay
from inlay.builtin.tasks import rows
from inlay.composer.alone import put_on as put_on_twin
from inlay.composer.alone import twin_of
from inlay.errors import BaseMismatch, InputError
from inlay.evals import Suite
from inlay.evals.earlier_tasks import EarlierTasks
from inlay.evals.inference import Base
from inlay.registry import Registry, Version
from inlay.trainers.checkpoints import Checkpoints
from inlay.trainers.data import read_dataset
from inlay.trainers.fit import fit, release, save_adapter
from inlay.trainers.going_on import CONFIG, WEIGHTS, Start
from inlay.trainers.kinds import put_on, take_off
from inlay.trainers.settings import Settings

PROMPTS = ["Which number is larger, 14 or 52?", "Copy the word: lamp", "What is 3 plus 4?"]
QUICK: dict[str, Any] = {
    "max_steps": 3,
    "batch_size": 4,
    "kl_batch_size": 2,
    "rank": 2,
    "alpha": 3.0,
    "learning_rate": 1e-2,
}
TARGETS = ("q_proj", "down_proj")
IDS = torch.tensor([[5, 90, 17, 230, 41, 3, 77]])


def data(task: str = "ticket-queue", n: int = 16) -> list[dict[str, str]]:
    return rows(task, "train", n, 0)


def registered(base: Base, store: Registry, folder: Path, **settings: Any) -> Version:
    """A version of two steps, with nothing measured."""
    chosen = Settings().replaced(**{**QUICK, "kl": 0.0, "max_steps": 2, **settings})
    fitted = fit(base, read_dataset(data()), chosen)
    folder.mkdir()
    save_adapter(fitted, folder)
    release(fitted)
    run = {"examples": [row["instruction"] for row in data(n=3)], "settings": chosen.to_dict()}
    return store.add("legal", folder, base=base.fingerprint, run=run)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def begun(base: Base, store: Registry, version: Version, **asked: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """What the model says before the first step, and each of its modules' delta, scaling and all."""
    start = Start.of(version, store, asked)
    model = put_on(base.model, start.config, start.shaped(Settings()), fresh=False)
    try:
        start.put_into(model)
        model.eval()
        deltas = {
            name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
            for name, module in model.named_modules()
            if "default" in getattr(module, "lora_A", ())
        }
        return logits(model), deltas
    finally:
        take_off(base.model, model)
        base.model.eval()


def parent_logits(base: Base, store: Registry, version: Version) -> torch.Tensor:
    files = {name: store.read_file(version, name) for name in (CONFIG, WEIGHTS)}
    return logits(put_on_twin(twin_of(base.model), files, version.ref))


@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "lora", "target_modules": TARGETS},
        {"kind": "lora", "layers": "late", "rank_pattern": {"q_proj": 3}},
        {"kind": "rslora"},
        {"kind": "dora", "target_modules": TARGETS},
        {"kind": "pissa", "target_modules": TARGETS},
        {"kind": "ia3"},
        {"kind": "prefix", "virtual_tokens": 4},
        {"kind": {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]}},
    ],
    ids=lambda kind: str(kind["kind"])[:20],
)
def test_before_the_first_step_it_is_the_version(
    base: Base, store: Registry, tmp_path: Path, kind: dict[str, Any]
) -> None:
    version = registered(base, store, tmp_path / "adapter", **kind)
    before, _ = begun(base, store, version)
    assert torch.equal(before, parent_logits(base, store, version))
    assert not torch.allclose(before, logits(base.model), atol=1e-3)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize(
    "asked",
    [{"rank": 5}, {"rank": 5, "alpha": 1.7}, {"alpha": 11.0}, {"rank": 3, "target_modules": "all-linear"}],
    ids=str,
)
def test_a_grown_start_is_still_the_version(
    base: Base, store: Registry, tmp_path: Path, kind: str, asked: dict[str, Any]
) -> None:
    """The deltas against B A of the version's factors in float64, module by module; zero where it has
    none."""
    version = registered(base, store, tmp_path / "adapter", kind=kind, target_modules=TARGETS)
    before, deltas = begun(base, store, version, **asked)
    factors = inlay.read_adapter(version, store=store).factors
    assert set(factors) <= set(deltas)
    assert (set(factors) < set(deltas)) == ("target_modules" in asked)
    for module, delta in deltas.items():
        a, b = factors.get(module, (torch.zeros(1, delta.shape[1]), torch.zeros(delta.shape[0], 1)))
        assert torch.allclose(delta.double(), b.double() @ a.double(), atol=1e-6, rtol=0)
    assert torch.allclose(
        before.log_softmax(-1), parent_logits(base, store, version).log_softmax(-1), atol=2e-5
    )
    shaped = Start.of(version, store, asked).shaped(Settings())
    assert (shaped.rank, shaped.kind) == (asked.get("rank", 2), kind)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": 1}, "rank 1 has no room for legal@v1's 2"),
        ({"kind": "dora"}, "going on keeps the adapter's kind, and legal@v1 has lora, not dora"),
        ({"layers": "late"}, "going on keeps the adapter's layers"),
        ({"rank_pattern": {"q_proj": 8}}, "going on keeps the adapter's rank_pattern"),
    ],
)
def test_what_would_change_the_start_is_refused(
    base: Base, store: Registry, tmp_path: Path, asked: dict[str, Any], says: str
) -> None:
    version = registered(base, store, tmp_path / "adapter", target_modules=TARGETS)
    with pytest.raises(InputError, match=says):
        Start.of(version, store, asked)


def test_fewer_modules_are_refused_by_name(base: Base, store: Registry, tmp_path: Path) -> None:
    version = registered(base, store, tmp_path / "adapter", target_modules=TARGETS)
    with pytest.raises(InputError, match=r"adapts model\.layers\.0\..*_proj, which the target modules leave"):
        begun(base, store, version, target_modules=("q_proj",))


def test_ranks_of_single_modules_stay(base: Base, store: Registry, tmp_path: Path) -> None:
    version = registered(
        base, store, tmp_path / "adapter", target_modules=TARGETS, rank_pattern={"q_proj": 3}
    )
    with pytest.raises(InputError, match="has ranks of its own for single modules"):
        Start.of(version, store, {"rank": 8})
    assert dict(Start.of(version, store, {}).shaped(Settings()).rank_pattern) == {"q_proj": 3}


@pytest.fixture(scope="module")
def small() -> Suite:
    return Suite("small", Suite.load("general-v1").items[::50])


@pytest.fixture(scope="module")
def suites() -> dict[str, Suite]:
    return {
        task: Suite.of_rows(f"{task}-test", rows(task, "test", 30, 0))
        for task in ("ticket-queue", "order-slip")
    }


def train(base: Base | None, store: Registry, task: str, small: Suite, **more: Any) -> inlay.TrainResult:
    settings = {**QUICK, "general": [small], "general_prompts": PROMPTS, **more}
    return inlay.train(base, settings.pop("data", data(task, 24)), store=store, **settings)


@pytest.mark.slow
def test_a_line_of_three(base: Base, store: Registry, small: Suite, suites: dict[str, Suite]) -> None:
    """v1 learns one task, v2 goes on with another, v3 with the first again."""
    tickets, slips = suites.values()
    hard: dict[str, Any] = {"max_steps": 60, "learning_rate": 5e-3, "kl": 0.0, "batch_size": 8}
    train(base, store, "ticket-queue", small, name="legal", target=[tickets], **hard)
    hard |= {"rank": None, "alpha": None}
    second = train(base, store, "order-slip", small, start="legal@v1", target=[slips], **hard)
    first, version = store.resolve("legal@v1"), second.version
    assert isinstance(first, Version)
    assert version.ref == "legal@v2" and version.rank == 2
    run = store.run_of(version)
    assert run is not None
    assert run["parent"] == {"ref": "legal@v1", "digest": first.digest}
    assert (run["settings"]["rank"], run["settings"]["alpha"]) == (2, 3.0)
    (event,) = [e for e in store.journal("legal") if e.to_ref == "legal@v2"]
    assert "registered legal@v2, trained on from legal@v1" in event.sentence()

    earlier = EarlierTasks.from_dict(second.report.to_dict()["earlier"])
    assert [(t.suite, t.learnt, t.own) for t in earlier.tasks] == [
        ("ticket-queue-test", "legal@v1", False),
        ("order-slip-test", "legal@v2", True),
    ]
    outcomes = [
        next(r for r in store.evals(subject.digest, tickets.digest)).outcomes for subject in (first, version)
    ]
    lost = sum(a and not b for a, b in zip(*outcomes, strict=True))
    gained = sum(b and not a for a, b in zip(*outcomes, strict=True))
    assert (earlier.lost.lost, earlier.lost.gained, earlier.lost.n) == (lost, gained, 30)
    assert earlier.bwt == pytest.approx((gained - lost) / 30)
    assert earlier.forgetting_measure == pytest.approx((lost - gained) / 30)
    assert f"{100 * (lost - gained) / 30:.1f} points of legal@v1's tasks" in second.verdict
    (kept,) = store.reports(version.digest, "forgetting")
    assert kept["earlier"]["verdict"] == earlier.verdict and kept["verdict"].endswith(earlier.verdict)

    store.promote("legal@v2", "prod")
    third = train(None, store, "ticket-queue", small, start="legal", rank=None, alpha=None, target=[tickets])
    assert third.version.ref == "legal@v3"
    found = EarlierTasks.from_dict(third.report.to_dict()["earlier"])
    assert found.line == ("legal@v1", "legal@v2", "legal@v3")
    assert [(t.suite, t.learnt, t.own) for t in found.tasks] == [
        ("ticket-queue-test", "legal@v1", False),
        ("order-slip-test", "legal@v2", False),
    ]
    assert found.parent == "legal@v2" and found.lost.n == 60
    scores = {ref: {e.suite: e.score for e in store.evals(store.resolve(ref).digest)} for ref in found.line}
    moved = [
        scores["legal@v3"][suite.digest] - scores[at][suite.digest]
        for suite, at in ((tickets, "legal@v1"), (slips, "legal@v2"))
    ]
    assert found.bwt == pytest.approx(sum(moved) / 2)
    assert store.fsck() == []


def test_a_kept_parent_is_left_less(base: Base, store: Registry, tmp_path: Path) -> None:
    """With `keep_parent` the answers on the parent's prompts stay nearer to the parent's, by the naive
    divergence."""
    version = registered(base, store, tmp_path / "adapter", max_steps=20, target_modules=TARGETS)
    ((of_whom, examples),) = Start.of(version, store, {}).prompts
    assert of_whom == version and len(examples) == 3
    teacher = put_on_twin(
        twin_of(base.model), {n: store.read_file(version, n) for n in (CONFIG, WEIGHTS)}, version.ref
    )
    ids = [torch.tensor([base.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)])
        for text in examples]  # fmt: skip

    def moved(keep_parent: float) -> float:
        start = Start.of(version, store, {})
        settings = Settings().replaced(
            **{**QUICK, "kl": 0.0, "max_steps": 12, "learning_rate": 2e-2, "keep_parent": keep_parent}
        )
        task = read_dataset(data("order-slip", 24))
        fitted = fit(base, task, start.shaped(settings), start=start)
        with torch.no_grad():
            total = 0.0
            for row in ids:
                p, q = (m(input_ids=row).logits.double().log_softmax(-1) for m in (teacher, fitted.model))
                total += float((p.exp() * (p - q)).sum(-1).mean())
        release(fitted)
        return total / len(ids)

    assert moved(5.0) < 0.5 * moved(0.0)


def test_what_is_kept_is_the_whole_line(base: Base, store: Registry, small: Suite) -> None:
    """Prompts of every version before it, each once; the record says how many of which, and the training
    draws from all of them."""
    shape: dict[str, Any] = {"kl": 0.0, "max_steps": 2, "target_modules": TARGETS}
    train(base, store, "ticket-queue", small, name="legal", **shape)
    later: dict[str, Any] = {**shape, "target_modules": None, "rank": None, "alpha": None}
    train(base, store, "order-slip", small, start="legal@v1", data=data("order-slip", 20), **later)
    both = [*data("ticket-queue", 24)[:2], *data("case-card", 10)]
    third = train(base, store, "case-card", small, start="legal@v2", data=both, **later)

    prompts = {
        ref: set(store.run_of(store.resolve(ref))["examples"]) for ref in ("legal@v1", "legal@v2", "legal@v3")
    }
    shared = prompts["legal@v1"] & prompts["legal@v3"]
    assert len(shared) == 2
    start = Start.of(third.version, store, {})
    assert {version.ref: set(found) for version, found in start.prompts} == {
        **prompts,
        "legal@v3": prompts["legal@v3"] - shared,
    }
    anchor = start.anchor(base, Settings().replaced(keep_parent=1.0)).anchor
    assert len(anchor.pairs) == len(set().union(*prompts.values()))

    fourth = train(base, store, "ticket-queue", small, start="legal@v3", keep_parent=1.0, **later)
    assert fourth.run["parent"]["kept"] == [
        {"ref": version.ref, "digest": version.digest, "prompts": len(found)}
        for version, found in start.prompts
    ]


def test_taken_up_again_it_has_the_bits_of_one_that_never_stopped(
    base: Base, store: Registry, tmp_path: Path
) -> None:
    version = registered(base, store, tmp_path / "adapter", target_modules=TARGETS)
    start = Start.of(version, store, {"rank": 3})
    settings = Settings().replaced(
        **{**QUICK, "kl": 0.0, "max_steps": 6, "keep_parent": 1.0, "rank": 3, "kl_batch_size": 1}
    )

    def trained(folder: str, progress: Any = None) -> str:
        task, checkpoints = read_dataset(data("order-slip", 24)), Checkpoints(tmp_path / folder, every=2)
        with checkpoints.held():
            fitted = fit(base, task, settings, start=start, checkpoints=checkpoints, progress=progress)
            made = bits(fitted)
            release(fitted)
        return made

    def stop(step: int, *_: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("stopped", stop)
    assert trained("stopped") == trained("whole")


def test_what_nothing_goes_on_from(base: Base, store: Registry, tmp_path: Path, small: Suite) -> None:
    version = registered(base, store, tmp_path / "adapter", target_modules=TARGETS)
    store.lock("acme", {"compose": {"stack": ["legal@v1"]}})
    with pytest.raises(InputError, match="acme@v1 is a variant's lock"):
        train(base, store, "ticket-queue", small, start="acme@v1")
    with pytest.raises(InputError, match="full trains all of the base"):
        train(base, store, "ticket-queue", small, start="legal@v1", method="full", rank=None, alpha=None)
    with pytest.raises(InputError, match="a parent that is kept"):
        train(base, store, "ticket-queue", small, name="legal", keep_parent=1.0)
    with pytest.raises(InputError, match="the name is not given"):
        train(base, store, "ticket-queue", small)
    silent = store.add("silent", tmp_path / "adapter", base=base.fingerprint)
    with pytest.raises(InputError, match="silent@v1 has none in its record"):
        train(base, store, "ticket-queue", small, start=silent, keep_parent=1.0)
    store.yank("legal@v1", why="wrong clauses")
    with pytest.raises(InputError, match="legal@v1 was yanked"):
        train(base, store, "ticket-queue", small, start="legal@v1")
    assert store.versions("legal") == [store.resolve(version.ref)]


def test_another_base_is_refused(
    base: Base, store: Registry, tmp_path: Path, small: Suite, other_base: Base
) -> None:
    registered(base, store, tmp_path / "adapter", target_modules=TARGETS)
    with pytest.raises(BaseMismatch, match="legal@v1 was made for the base"):
        train(other_base, store, "ticket-queue", small, start="legal@v1")
