"""All that keeps one training from forgetting, put together from its settings, and what came of it in words:
KL to the base, replay, an orthogonal start, early stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

    from inlay.composer.factors import Adapter
    from inlay.evals.inference import Base
    from inlay.trainers.anchor import Anchor
    from inlay.trainers.early_stop import ForgettingStop
    from inlay.trainers.protected import Protected
    from inlay.trainers.settings import Settings

General = tuple[list[str], list[str]]
"""General prompts and the base's own answers to them."""


def needs_answers(settings: Settings) -> bool:
    """Does a run with these settings ask for the base's own answers to general prompts?"""
    return settings.kl > 0 or settings.replay > 0 or settings.stop_forgetting > 0


@dataclass
class Remembering:
    """Made before the model has its adapter; `rows`, then `begin`, then the training, then `record`.

    `general`: what KL and replay draw from; `protected`: what early stop asks, held apart from it. `teacher`:
    the base, where it is not the model with its adapter off.
    """

    base: Base
    settings: Settings
    general: General | None
    others: Sequence[Adapter]
    anchor: Anchor | None = None
    protected: Protected | None = None
    stop: ForgettingStop | None = None
    penalty: Callable[[], torch.Tensor] | None = None
    _record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        base: Base,
        settings: Settings,
        general: General | None,
        others: Sequence[Adapter] = (),
        *,
        teacher: Any = None,
    ) -> Remembering:
        """Raises InputError where settings ask for general prompts and there are none, or too few to hold
        some apart, and for a penalty against no adapter."""
        if needs_answers(settings) and general is None:
            raise InputError(
                "KL to the base, replay and early stop need general prompts, and none were given",
                fix="set kl, replay and stop_forgetting to 0 to do without",
            )
        if settings.orthogonal_penalty > 0 and not others:
            raise InputError(
                "an orthogonal penalty is one against other adapters, and none are named",
                fix="name them with --orthogonal-to",
            )
        made = cls(base, settings, general, others)
        if settings.stop_forgetting > 0 and general is not None:
            from inlay.trainers.protected import hold_apart

            made.protected, made.general = hold_apart(base, *general, seed=settings.seed)
        if settings.kl > 0 and made.general is not None:
            from inlay.trainers import processes
            from inlay.trainers.anchor import Anchor

            made.anchor = Anchor(
                base.tokenizer,
                *made.general,
                rows=settings.kl_batch_size,
                ratio=settings.kl_ratio,
                prompt_weight=settings.kl_prompt,
                seed=settings.seed + processes.index(),
                device=str(base.model.device),
                teacher=teacher,
            )
        return made

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The task's rows, and those of replay after them."""
        if self.settings.replay == 0 or self.general is None:
            return rows
        from inlay.trainers.replay import mixed

        found = mixed(self.base, rows, *self.general, self.settings.replay, self.settings.seed)
        self._record["replay"] = {"rows": found.replayed, "token_share": round(found.token_share, 4)}
        return found.rows

    def begin(self, model: Any) -> list[ForgettingStop]:
        """Start `model`, whose adapter is fresh, where it should; the callbacks of its training."""
        if self.others:
            from inlay.trainers.orthogonal import Penalty, stacked, start

            old = stacked(self.others)
            modules = start(model, old)
            self._record["orthogonal"] = {"to": [each.name for each in self.others], "modules": modules}
            if self.settings.orthogonal_penalty > 0 and modules:
                self.penalty = Penalty(model, old, self.settings.orthogonal_penalty)
        if self.protected is None:
            return []
        from inlay.trainers.early_stop import ForgettingStop

        self.stop = ForgettingStop(
            self.base,
            model,
            self.protected,
            limit=self.settings.stop_forgetting / 100.0,
            every=self.settings.stop_every,
        )
        return [self.stop]

    def record(self, *, task_tokens: int, seconds: float) -> dict[str, Any]:
        """Plain JSON of what was done and what it took: `seconds` and `task_tokens` of the whole training."""
        found = dict(self._record)
        if self.anchor is not None:
            spent = self.anchor.clock.seconds
            found["kl"] = {
                "tokens": self.anchor.tokens,
                "ratio": round(self.anchor.tokens / max(1, task_tokens), 4),
                "seconds": round(spent, 3),
                "share": round(spent / seconds, 4) if seconds else 0.0,
            }
        if self.stop is not None:
            found["stop"] = self.stop.record()
        return found


def in_words(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that `Remembering.record` says; none for runs from before it was kept."""
    found = []
    if kl := record.get("kl"):
        found.append(
            f"KL to the base took {kl['ratio']:.2f} general tokens for each of the task's and "
            f"{100 * kl['share']:.0f}% of the training's time ({kl['seconds']:.1f} s)."
        )
    if replay := record.get("replay"):
        found.append(
            f"{replay['rows']} rows of general prompts were replayed among the task's, "
            f"{100 * replay['token_share']:.0f}% of all tokens."
        )
    if orthogonal := record.get("orthogonal"):
        found.append(
            f"It began orthogonal to {', '.join(orthogonal['to'])} in {orthogonal['modules']} modules."
        )
    if (stop := record.get("stop")) and stop["looks"]:
        found.append(_stopped(stop))
    return found


def _stopped(stop: Mapping[str, Any]) -> str:
    last = stop["looks"][-1]
    said = (
        f"{last['lost']} of {last['n']} protected prompts are answered otherwise than the base does "
        f"(at least {max(0.0, 100 * last['lower']):.1f} points, {100 * stop['limit']:g} allowed)"
    )
    if stop["stopped"] is None:
        return f"After the last step {said}."
    return f"Stopped after step {stop['stopped']}: {said}. The weights of step {stop['kept']} are kept."
