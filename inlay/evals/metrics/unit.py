"""In which unit a score is read out: percent where it is a share of 1, else the metric's own numbers."""

from __future__ import annotations

from dataclasses import dataclass

from inlay.evals.metrics.rule import Metric


@dataclass(frozen=True)
class Unit:
    """`share`: scores lie between 0 and 1 and are read as percent, their differences as points. `graded`:
    the name of what is graded, `token_f1`; "" where items are right or wrong. `mean`: what the mean of graded
    outcomes is called, which is the score except where it has another unit (`perplexity: nats a token`).
    """

    share: bool = True
    higher_is_better: bool = True
    graded: str = ""
    mean: str = ""

    @classmethod
    def of(cls, metrics: tuple[Metric, ...]) -> Unit:
        """The unit of a suite with these metrics; of a metric nobody here knows it is percent."""
        return cls(
            all(m.lowest == 0.0 and m.highest == 1.0 for m in metrics),
            all(m.higher_is_better for m in metrics),
            "+".join(m.name for m in metrics if m.graded),
            "+".join(f"{m.name}: {m.outcome_in}" if m.outcome_in else m.name for m in metrics if m.graded),
        )

    def bare(self, value: float) -> str:
        """A score or a difference without its unit: `54.5`, `3.217`; no `-0.0`."""
        text = f"{100.0 * value:.1f}" if self.share else f"{value:.4g}"
        return "0.0" if text == "-0.0" else text

    def score(self, value: float) -> str:
        """`54.5%` or `3.217`."""
        return f"{self.bare(value)}%" if self.share else self.bare(value)

    def change(self, text: str) -> str:
        """A difference with its unit: `3.2 points`, or the number alone."""
        return f"{text} points" if self.share else text
