"""inlay demo"""

from __future__ import annotations

from pathlib import Path

import click

from inlay.cli.console import emit, json_option, points, progress, table


@click.command("demo")
@click.argument("folder", required=False)
@json_option
def demo_verb(folder: str | None, as_json: bool) -> None:
    """The whole story for real, in FOLDER (inlay-demo), on a small built-in base, without network.

    Trains two adapters, composes them for the customer acme, measures what was gained and forgotten,
    promotes, trains a careless version that the guard refuses, forces it, rolls it back, and proves that the
    answers are bit for bit as before. A few minutes on two cores.

    \b
    Example:
      inlay demo
    """
    from inlay.demo import run_demo
    from inlay.errors import InputError

    target = Path(folder) if folder else _free("inlay-demo")
    if target.exists():
        raise InputError(
            f"the demo needs a folder that does not exist yet, and {target} does", fix="name another"
        )
    with progress() as say:
        demo = run_demo(target, tell=lambda line: click.echo(f"• {line}", err=True), say=say)
    emit("demo", as_json, demo.to_dict(), lambda: _text(demo.to_dict()))


def _free(name: str) -> Path:
    candidates = [Path(name), *(Path(f"{name}-{n}") for n in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


def _text(demo: dict) -> str:
    suites = list(demo["rows"][0]["targets"])
    cells = [
        (
            row["subject"],
            *(f"{points(row['targets'][s])}%" if s in row["targets"] else "" for s in suites),
            f"{points(row['general'])}%",
            points(row["lost"]),
            points(row["upper"]),
        )
        for row in demo["rows"]
    ]
    listed = "\n".join(f"  {line}" for line in demo["journal"])
    proof = "identical" if demo["bit_identical_after_rollback"] else "DIFFERENT"
    return (
        f"\n{table(cells, ('', *suites, 'held-out general', 'lost', 'upper 95% bound'))}\n"
        f"(score in percent, held-out general skills lost in points, n={demo['rows'][0]['n']})\n\n"
        f"The journal:\n{listed}\n\n"
        f"Answers of acme@prod before the careless version and after its rollback: {proof}, bit for bit.\n"
        f"{demo['seconds']:.0f} seconds. The report: {demo['page']}\n"
    )
