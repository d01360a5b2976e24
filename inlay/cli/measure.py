"""inlay eval"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import base_options, common, emit, open_store, points, printable_lines, progress

if TYPE_CHECKING:
    from inlay.evals import EvalResult


@click.command("eval")
@click.argument("ref", required=False)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="SUITE",
    help="A JSONL file, a folder or a known name; repeatable.",
)
@click.option(
    "--temperature", type=float, metavar="T", help="Draw answers at this temperature.  [default: greedy]"
)
@click.option("--top-p", type=float, metavar="P", help="Draw from the likeliest tokens that have P together.")
@click.option("--seed", type=int, metavar="N", help="Seed of the draws, kept with the score.  [default: 0]")
@click.option("--embedding", metavar="FOLDER", help="The embedding model, for the metric similarity.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Find from which drift on the base's alarm is raised, on general suites.",
)
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def eval_verb(
    ref: str | None,
    suites: tuple[str, ...],
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    embedding: str | None,
    calibrate: bool,
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Score REF, and its base beside it, on a suite; the scores are kept.

    What was scored before under the same protocol is not scored again, and what was interrupted goes on
    where it stopped. Suites and metrics: docs/suites.md.

    \b
    Examples:
      inlay eval legal-clauses@v2 --suite legal-test.jsonl
      inlay eval acme@prod --suite letters.jsonl --temperature 0.7 --top-p 0.9 --seed 1
      inlay eval --calibrate --base builtin
    """
    if calibrate:
        from inlay.cli.calibrate import calibrate_base

        calibrate_base(ref, suites, base, device, open_store(store), as_json)
        return
    if ref is None or not suites:
        raise click.UsageError("name what is scored and a suite: inlay eval REF --suite SUITE")
    from inlay.cli.bases import base_or_last
    from inlay.composer import compose, evaluate
    from inlay.composer.measure import suite_of
    from inlay.evals.decoding import Decoding

    given = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sample = Decoding.of({key: value for key, value in given.items() if value is not None})
    registry = open_store(store)
    loaded = [suite_of(suite, registry) for suite in suites]
    notes: list[str] = []
    composed = compose(
        ref, store=registry, base=base_or_last(base), device=device, accept_prompt_change=accept_prompt_change
    )
    with progress() as draw:

        def say(what: str, done: int, total: int) -> None:
            if what.startswith("note: "):
                notes.append(what)
            else:
                draw(what, done, total)

        results = [
            evaluate(composed, suite, store=registry, sample=sample, embedding=embedding, say=say)
            for suite in loaded
        ]
    if notes:
        click.echo(printable_lines(notes), err=True)
    emit("eval", as_json, [_result(r) for r in results], lambda: printable_lines([_line(r) for r in results]))


def _result(result: EvalResult) -> dict[str, Any]:
    """A score as plain JSON."""
    low, high = result.interval
    if result.graded:
        by_skill: dict[str, Any] = {
            skill: {"score": score, "n": n} for skill, (score, n) in result.skill_scores.items()
        }
    else:
        by_skill = {skill: {"right": right, "n": n} for skill, (right, n) in result.by_skill.items()}
    return {
        "subject": result.label,
        "suite": result.suite.name,
        "digest": result.suite.digest,
        "metric": result.metric,
        "graded": result.graded,
        "higher_is_better": result.suite.higher_is_better,
        "protocol": result.protocol,
        "score": result.score,
        "low": low,
        "high": high,
        "n": result.n,
        "by_skill": by_skill,
    }


def _line(result: EvalResult) -> str:
    """A score in words: percent where it is a share, else in the metric's own unit."""
    low, high = result.interval
    share = all(metric.highest == 1.0 and metric.lowest == 0.0 for metric in result.suite.metrics)
    score, low_text, high_text = (points(x) if share else f"{x:.4g}" for x in (result.score, low, high))
    what = f"{result.metric} " if result.graded else ""
    return (
        f"{result.label} on {result.suite.name}: {what}{score}{'%' if share else ''} (95% interval "
        f"{low_text} to {high_text}, n={result.n})"
    )
