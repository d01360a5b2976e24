"""The routers that are fitted: their closed form against naive refits, what they choose, their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from safetensors.torch import save

from inlay.composer.routers import Centroid, Fitted, Material, Probe, Words
from inlay.composer.routers.calibration import Calibration
from inlay.composer.routers.choice import chosen
from inlay.composer.routers.ridge import Ridge, novelty
from inlay.composer.routers.seen import POOLS, encoded, pool, pooled_states, see
from inlay.composer.routers.tfidf import BUCKETS, counted
from inlay.errors import InputError, IntegrityError
from inlay.evals.inference import Base, encode_prompt, pad
from inlay.evals.prompts import GeneralPrompt, read_general

THINGS = ["parcel", "order", "invoice", "card", "phone", "router", "coat"]
NAMES = ["Anna", "Tom", "Mia", "Ben", "Eva", "Leo", "Ida"]
QUEUES = [f"Which queue handles this message?\nMy {thing} is late." for thing in THINGS]
SLIPS = [f"Write the order slip.\n{n} blue chairs for {name}" for n, name in enumerate(NAMES, 2)]
KINDS: tuple[type[Fitted], ...] = (Probe, Words, Centroid)


def general() -> list[GeneralPrompt]:
    return read_general(None)[::10]


def material(base: Base, **changes: object) -> Material:
    given = {"examples": [QUEUES[:5], SLIPS[:5]], "general": general(), "experts": ["a", "b"], **changes}
    return Material(base, **given)  # type: ignore[arg-type]


def problem(rows: int, features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    x[:, :3] += torch.nn.functional.one_hot(labels, 3) * 1.5
    share = torch.rand(rows, generator=generator, dtype=torch.float64) + 0.1
    share = share / share.sum()
    return x - (share[:, None] * x).sum(0), labels, share


@pytest.mark.parametrize(("rows", "features"), [(24, 10), (12, 40)], ids=["more rows", "more features"])
def test_ridge_and_what_it_says_of_unseen_rows_equal_naive_refits(rows: int, features: int) -> None:
    x, labels, share = problem(rows, features)
    penalty = 0.03
    ridge = Ridge.of(x, labels, share)
    groups = [torch.tensor([0]), torch.tensor([4]), torch.tensor([1, 5, 7])]
    found, unlike = ridge.unseen(penalty, groups)

    y = torch.nn.functional.one_hot(labels, 3).double()
    offset = (share[:, None] * y).sum(0)
    root = share.sqrt()[:, None]

    def refit(kept: Sequence[int]) -> torch.Tensor:
        xs, ys = (root * x)[kept], (root * (y - offset))[kept]
        return torch.linalg.solve(xs.T @ xs + penalty * torch.eye(features, dtype=torch.float64), xs.T @ ys)

    assert torch.allclose(ridge.weights(penalty), refit(range(rows)), atol=1e-9)
    assert torch.allclose(ridge.offset, offset)
    naive, leverages = [], []
    for group in groups:
        kept = [i for i in range(rows) if i not in group.tolist()]
        xs = (root * x)[kept]
        inverse = torch.linalg.inv(xs.T @ xs + penalty * torch.eye(features, dtype=torch.float64))
        naive += [x[i] @ refit(kept) + offset for i in group.tolist()]
        leverages += [x[i] @ inverse @ x[i] for i in group.tolist()]
    assert torch.allclose(found, torch.stack(naive), atol=1e-9)
    assert torch.allclose(unlike, torch.stack(leverages), rtol=1e-9)
    new = torch.randn(5, features, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    xs = root * x
    inverse = torch.linalg.inv(xs.T @ xs + penalty * torch.eye(features, dtype=torch.float64))
    expected = torch.stack([row @ inverse @ row for row in new])
    assert torch.allclose(novelty(new, ridge.directions, ridge.squares, penalty), expected, rtol=1e-9)


def test_centroid_scores_of_unseen_rows_equal_means_without_them() -> None:
    x, labels, share = problem(24, 6)
    groups = [torch.tensor([3]), (labels == 2).nonzero().flatten()]
    solved = Centroid.solve(x, labels, share, groups, experts=2)
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(x, means).argmin(1)
    assert torch.equal((x @ solved.weights + solved.offset).argmax(1), nearest)
    without = x[(labels == 0) & (torch.arange(24) != 3)].mean(0)
    own = float(x[3] @ without - (without**2).sum() / 2)
    others = means[1:] @ x[3] - (means[1:] ** 2).sum(1) / 2
    calibration = Calibration.of(
        torch.stack([torch.tensor([own, *others.tolist()]), *_without_third(x, means, groups[1])]),
        torch.tensor([0, *[2] * len(groups[1])]),
    )
    assert solved.calibration.floor == pytest.approx(calibration.floor)
    assert solved.calibration.temperature == pytest.approx(calibration.temperature)
    assert solved.calibration.missed == calibration.missed
    assert solved.calibration.strayed == calibration.strayed


def _without_third(x: torch.Tensor, means: torch.Tensor, rows: torch.Tensor) -> list[torch.Tensor]:
    """Scores of general rows whose only kind was left out: nothing is left of the base."""
    scores = x[rows] @ means.T - (means**2).sum(1) / 2
    scores[:, 2] = -torch.inf
    return list(scores)


def test_pooled_states_are_those_of_each_prompt_alone_whatever_side_is_padded(base: Base) -> None:
    prompts = [QUEUES[0], SLIPS[0], "Hello"]
    ids = encoded(base, prompts)
    found = pooled_states(base, ids)
    layers = base.model.config.num_hidden_layers + 1
    assert found.shape == (3, len(POOLS), layers, base.model.config.hidden_size)
    for row, one in enumerate(ids):
        with torch.inference_mode():
            states = base.model(torch.tensor([one]), output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            h = state[0]
            naive = torch.stack([h.mean(0), h.std(0, unbiased=False), h.amax(0), h[-1]])
            assert (found[row, :, layer] - naive).abs().max() < 1e-4
    for side in ("left", "right"):
        padded, mask = pad(ids, 0, side=side, device="cpu")
        state = torch.randn(*padded.shape, 4, generator=torch.Generator().manual_seed(1))
        rows = pool([state], mask)
        for row in range(3):
            h = state[row][mask[row].bool()]
            naive = torch.stack([h.mean(0), h.std(0, unbiased=False), h.amax(0), h[-1]])
            assert (rows[row, :, 0] - naive).abs().max() < 1e-5


def test_words_count_words_and_neighbours() -> None:
    row = counted(["The card, the Card is lost"])[0]
    assert row.sum() == 6 + 5, "six words and five pairs"
    assert row.shape == (BUCKETS,) and row.max() == 2


def test_the_probe_sees_states_and_words(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    given = material(base)
    router = Probe.fit(given)
    counts = counted([str(prompt) for prompt in given.prompts()])
    share = 1 / torch.bincount(given.labels())[given.labels()]
    share = (share / share.sum()).double()
    idf = (1 + len(counts)) / (1 + torch.tensor([int((column > 0).sum()) for column in counts.T]))
    idf = idf.log() + 1
    tfidf = torch.where(counts > 0, 1 + counts.clamp_min(1).log(), 0.0) * idf
    tfidf = tfidf / tfidf.norm(dim=1, keepdim=True)
    words = 0.3 * (tfidf - (share[:, None] * tfidf).sum(0))
    found = router.features(see(base, encoded(base, given.prompts())))
    assert (found[:, -BUCKETS:] - words).abs().max() < 1e-6
    states = found[:, :-BUCKETS].double()
    assert (share[:, None] * states).sum(0).abs().max() < 1e-5
    assert 0.9 < float((share[:, None] * states**2).sum()) < 1.001, "one, but for features that never vary"
    monkeypatch.setattr("inlay.composer.routers.probe.WORDS_FOR", len(counts) - 1)
    many = Probe.fit(given)
    same = many.features(see(base, encoded(base, given.prompts()))) - states
    assert same.abs().max() < 1e-5
    assert "words" not in many.details and many.weights.shape[0] == states.shape[1]


def test_the_floor_loses_least_and_the_temperature_fits_best() -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([0] * 20 + [1] * 20 + [2] * 60)
    scores = torch.randn(100, 3, generator=generator, dtype=torch.float64)
    scores[torch.arange(100), labels] += 1.2
    found = Calibration.of(scores, labels)
    assert found.floor is not None

    def raised(floor: float) -> torch.Tensor:
        return torch.cat([scores[:, :2], scores[:, 2:].clamp_min(floor)], 1)

    def loss(floor: float) -> float:
        best = raised(floor).argmax(1)
        requests = labels < 2
        return float((best != labels)[requests].double().mean() + (best != 2)[~requests].double().mean())

    naive = min(loss(float(t)) for t in torch.linspace(-0.01, 6, 2404))
    assert loss(found.floor) == pytest.approx(naive)
    assert found.missed is not None and found.strayed is not None
    assert found.missed + found.strayed == pytest.approx(naive)

    def cost(temperature: float) -> float:
        p = (raised(found.floor or 0.0) / temperature).softmax(1)[torch.arange(100), labels]
        total = 0.0
        for kind, n in ((labels == 2, 60), (labels < 2, 40)):
            target = (n + 1) / (n + 2)
            total -= float((target * p[kind].log() + (1 - target) * (1 - p[kind]).log()).mean())
        return total

    assert cost(found.temperature) <= min(cost(float(t)) for t in torch.logspace(-2, 1, 300)) + 1e-3
    assert torch.allclose(found.probabilities(scores).sum(1), torch.ones(100))


def test_where_nothing_lies_between_the_floor_leans_to_the_requests_and_is_not_sure_of_everything() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.1, 0.0], [0.2, 0.0]], dtype=torch.float64)
    found = Calibration.of(scores, torch.tensor([0, 0, 1, 1]))
    assert found.floor == pytest.approx(0.2 + 0.1 * 0.7)
    assert (found.missed, found.strayed) == (0.0, 0.0)
    assert 0.5 < float(found.probabilities(scores)[0, 0]) < 0.95, "two of two are no proof"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_routers_tell_two_tasks_from_general_prompts(base: Base, kind: type[Fitted]) -> None:
    held_back = read_general(None)[5::10]
    router = kind.fit(material(base))
    asked = [*QUEUES[5:], *SLIPS[5:], *(each.prompt for each in held_back)]
    choices = router.choose(see(base, encoded(base, asked)))
    assert [choice.expert for choice in choices[:4]] == [0, 0, 1, 1]
    to_base = sum(choice.expert is None for choice in choices[4:]) / len(held_back)
    assert to_base >= (0.98 if kind is Probe else 0.9)
    assert all(sum(choice.scores) == pytest.approx(1.0, abs=1e-5) for choice in choices)
    assert all(choice.confidence == max(choice.scores) for choice in choices)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_same_fit_gives_the_same_bytes_and_reads_back(base: Base, kind: type[Fitted]) -> None:
    router = kind.fit(material(base))
    data = router.to_bytes()
    assert data == kind.fit(material(base)).to_bytes()
    read = kind.from_bytes(data, base=base.fingerprint.weights, experts=["a", "b"])
    seen = see(base, encoded(base, QUEUES))
    assert torch.equal(read.probabilities(seen), router.probabilities(seen))
    assert read.calibration == router.calibration


def test_a_foreign_router_is_refused(base: Base) -> None:
    data = Probe.fit(material(base)).to_bytes()
    for other, experts in ((base.fingerprint.weights, ["a", "c"]), ("sha256:other", ["a", "b"])):
        with pytest.raises(IntegrityError, match="fitted for the adapters and the base"):
            Probe.from_bytes(data, base=other, experts=experts)
    with pytest.raises(IntegrityError, match="fitted for the adapters"):
        Words.from_bytes(data, base=base.fingerprint.weights, experts=["a", "b"])
    with pytest.raises(IntegrityError, match="no weights of a router"):
        Words.from_bytes(save({"a": torch.zeros(1)}), base="x", experts=[])


def test_too_little_to_fit_is_refused(base: Base) -> None:
    with pytest.raises(InputError, match="at least two experts"):
        material(base, examples=[QUEUES], experts=["a"])
    with pytest.raises(InputError, match="number 2 has none"):
        material(base, examples=[QUEUES, []])
    with pytest.raises(InputError, match="general prompts"):
        material(base, general=[])


def test_general_prompts_without_skills_are_left_out_one_by_one(base: Base) -> None:
    plain = [GeneralPrompt(each.prompt) for each in general()]
    groups = material(base, general=plain).left_out()
    assert [len(group) for group in groups] == [1] * (10 + len(plain))
    by_skill = material(base).left_out()[10:]
    assert len(by_skill) == len({each.skill for each in general()})
    one_skill = material(base, general=[GeneralPrompt(each.prompt, "all") for each in general()])
    assert all(len(group) == 1 for group in one_skill.left_out())


def test_who_is_not_allowed_does_not_exist() -> None:
    probabilities = torch.tensor([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [1.0, 0.0, 0.0]])
    allowed = [[False, True], [False, False], [False, True]]
    one, two, three = chosen(probabilities, allowed)
    assert one.expert == 1 and one.scores == pytest.approx((0.0, 0.75, 0.25))
    assert two.expert is None and two.scores == pytest.approx((0.0, 0.0, 1.0))
    assert three.expert is None, "nothing was likely but what may not be reached"


def test_a_probe_of_the_first_schema_still_chooses_as_it_did(base: Base) -> None:
    """One class for the base, means of all layers only, and no threshold."""
    layers, hidden, width = base.model.config.num_hidden_layers + 1, base.model.config.hidden_size, 16
    generator = torch.Generator().manual_seed(5)
    d = layers * width
    tensors = {
        "mean": torch.randn(d, generator=generator),
        "scale": torch.rand(d, generator=generator) + 0.5,
        "weights": torch.randn(d, 3, generator=generator),
        "offset": torch.randn(3, generator=generator),
    }
    details = {
        "base": base.fingerprint.weights,
        "examples": [1, 1, 1],
        "experts": ["a", "b"],
        "leave_one_out_error": 0.0,
        "ridge": 1.0,
        "router": "probe",
        "seed": 7,
        "width": width,
    }
    data = save(tensors, metadata={"probe": json.dumps(details, sort_keys=True)})
    router = Probe.from_bytes(data, base=base.fingerprint.weights, experts=["a", "b"])
    prompts = [*QUEUES[:2], *SLIPS[:2]]

    projection = torch.randn(layers, hidden, width, generator=torch.Generator().manual_seed(7)) / width**0.5
    naive = []
    for prompt in prompts:
        with torch.inference_mode():
            ids = torch.tensor([encode_prompt(base.tokenizer, prompt)])
            states = base.model(ids, output_hidden_states=True).hidden_states
        means = torch.stack([state[0].mean(0) for state in states])
        features = torch.einsum("lh,lhw->lw", means, projection).flatten()
        naive.append(
            ((features - tensors["mean"]) / tensors["scale"]) @ tensors["weights"] + tensors["offset"]
        )
    choices = router.choose(see(base, encoded(base, prompts)))
    assert [2 if c.expert is None else c.expert for c in choices] == torch.stack(naive).argmax(1).tolist()
