"""A store with a story: two versions of one adapter, another adapter, locks of both, scores with chosen
outcomes. No model answers anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from registry_fakes import adapter_tensors, make_adapter, make_base, score

from inlay.evals.suites import Suite
from inlay.registry import Registry

MARCH = {"name": "tickets-march", "rows": 1000, "digest": "sha256:" + "1" * 64}
MAY = {"name": "tickets-may", "rows": 1600, "digest": "sha256:" + "2" * 64}


def keep(registry: Registry, name: str, n: int, *, skills: int = 1, held_out: int | None = None) -> Suite:
    """A suite of `n` items dealt to `skills` skills, the first `held_out` of them held out; stored."""
    rows = [
        {
            "id": f"{name}-{k}",
            "prompt": f"{name} {k}?",
            "answer": "!",
            "skill": f"skill{k % skills}",
            "split": "held_out" if held_out is None or k % skills < held_out else "protected",
        }
        for k in range(n)
    ]
    suite = Suite.of_rows(name, rows)
    registry.put_suite(
        name, suite.digest, suite.to_jsonl(), metric=suite.metric, skills=suite.skill_summary()
    )
    return suite


def outcomes(n: int, rate: float, seed: int) -> tuple[bool, ...]:
    return tuple(bool(x) for x in np.random.default_rng(seed).random(n) < rate)


def flipped(before: Sequence[bool], lost: int, gained: int) -> tuple[bool, ...]:
    """`before` with the first `lost` right items wrong and the first `gained` wrong ones right."""
    after = list(before)
    for count, was in ((lost, True), (gained, False)):
        places = [k for k, x in enumerate(before) if x is was][:count]
        assert len(places) == count
        for k in places:
            after[k] = not was
    return tuple(after)


def run_record(data: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "dataset": dict(data),
        "settings": {"rank": 2, "learning_rate": 0.001, **settings},
        "declared": {"minimum": None, "target": [{"name": "legal-test", "digest": "sha256:" + "3" * 64}]},
        "steps": 100,
        "tokens": {"task": 5000, "general": 0},
        "seconds": 12.5,
        "curve": [{"step": 1, "loss": 2.0}],
        "examples": ["a customer's own words"],
    }


def story(folder: Path) -> Registry:
    """legal@v1, legal@v2 (another rank, other data, a licence), style@v1, and scores of all on two suites.

    legal-test (200 items): 12 lost, 40 gained from v1 to v2. general-v1 (400 items in four skills, two held
    out): the first 30 right ones lost.
    """
    import inlay

    base = make_base(folder / "base")
    registry = inlay.Registry.open(folder / "store", create=True)
    first = make_adapter(folder / "legal1", seed=1, config={"lora_dropout": 0.1, "revision": None})
    registry.add("legal", first, base=base, why="first training", run=run_record(MARCH))
    second = make_adapter(
        folder / "legal2",
        seed=2,
        tensors=adapter_tensors(2, rank=4),
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["v_proj", "q_proj"],
            "use_rslora": True,
            "rank_pattern": {"q_proj": 4},
        },
    )
    (second / "README.md").write_text("---\nlicense: mit\n---\n# legal\n")
    registry.add(
        "legal", second, base=base, why="with May's tickets", run=run_record(MAY, learning_rate=0.01)
    )
    registry.add("style", make_adapter(folder / "style", seed=11), base=base)
    keep(registry, "legal-test", 200)
    keep(registry, "general-v1", 400, skills=4, held_out=2)
    target, general = outcomes(200, 0.6, 5), outcomes(400, 0.9, 6)
    score(registry, "base", "legal-test", outcomes(200, 0.1, 7))
    score(registry, "base", "general-v1", general)
    score(registry, "legal@v1", "legal-test", target)
    score(registry, "legal@v1", "general-v1", general)
    score(registry, "legal@v2", "legal-test", flipped(target, 12, 40))
    score(registry, "legal@v2", "general-v1", flipped(general, 30, 0))
    return registry


def plain_json(value: Any) -> Any:
    """`value` through JSON, which refuses NaN and what is no data."""
    return json.loads(json.dumps(value, allow_nan=False))
