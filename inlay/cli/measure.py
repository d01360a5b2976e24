"""inlay eval"""

from __future__ import annotations

import click

from inlay.cli.console import base_options, common, emit, open_store, points, progress


@click.command("eval")
@click.argument("ref")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    required=True,
    metavar="SUITE",
    help="A JSONL file, a folder or a known name; repeatable.",
)
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def eval_verb(
    ref: str,
    suites: tuple[str, ...],
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Score REF, and its base beside it, on a suite; the scores are kept.

    What was scored before under the same protocol is not scored again.

    \b
    Example:
      inlay eval legal-clauses@v2 --suite legal-test.jsonl
    """
    from inlay.cli.bases import base_or_last
    from inlay.composer import compose, evaluate

    registry = open_store(store)
    composed = compose(
        ref, store=registry, base=base_or_last(base), device=device, accept_prompt_change=accept_prompt_change
    )
    with progress() as say:
        results = [evaluate(composed, suite, store=registry, say=say) for suite in suites]
    found = [
        {
            "subject": r.label,
            "suite": r.suite.name,
            "digest": r.suite.digest,
            "score": r.score,
            "low": r.interval[0],
            "high": r.interval[1],
            "n": r.n,
            "by_skill": {skill: {"right": right, "n": n} for skill, (right, n) in r.by_skill.items()},
        }
        for r in results
    ]
    lines = [
        f"{r.label} on {r.suite.name}: {points(r.score)}% (95% interval {points(r.interval[0])} to "
        f"{points(r.interval[1])}, n={r.n})"
        for r in results
    ]
    emit("eval", as_json, found, "\n".join(lines))
