"""inlay init, add, fsck, gc"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inlay.cli.console import (
    bars_wanted,
    coming_in,
    common,
    emit,
    json_option,
    open_store,
    printable_lines,
)


@click.command("init")
@click.argument("folder", default="adapters_store")
@json_option
def init_verb(folder: str, as_json: bool) -> None:
    """Make a store in FOLDER (adapters_store).

    Every verb below FOLDER's parent finds it by itself, as git finds its repository.

    \b
    Example:
      inlay init
    """
    import inlay

    existed = (Path(folder) / "registry.db").exists()
    with inlay.Registry.open(folder, create=True) as registry:
        found = {"store": str(registry.path), "created": not existed}
    emit("init", as_json, found, f"{'made' if not existed else 'there is already'} a store in {folder}")


@click.command("add")
@click.argument("name")
@click.argument("folder", metavar="FOLDER|REPO")
@click.option("--revision", metavar="REVISION", help="Of REPO: a branch, tag or commit; by default main.")
@click.option(
    "--examples", metavar="FILE", help='JSONL of {"prompt"}: requests this adapter is for, for routers.'
)
@click.option(
    "--initial",
    metavar="FOLDER",
    help="The adapter before its training, for PiSSA, OLoRA, CorDA and LoRA-GA: makes it a plain LoRA.",
)
@click.option(
    "--truncate",
    type=click.IntRange(min=1),
    metavar="RANK",
    help="For kinds without factors (DoRA, (IA)³, OFT, …): keep at most RANK directions, as a plain LoRA.",
)
@click.option(
    "--truncate-energy",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="The same, keeping as many directions as hold this share of each module's squared norm.",
)
@coming_in
@common
def add_verb(
    name: str,
    folder: str,
    base: str,
    revision: str | None,
    examples: str | None,
    initial: str | None,
    truncate: int | None,
    truncate_energy: float | None,
    owner: str | None,
    tags: tuple[str, ...],
    description: str | None,
    allow_base_mismatch: bool,
    accept_prompt_change: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Register the adapter in FOLDER, or in the hub's repository REPO, as the next version of NAME.

    FOLDER is what PEFT's save_pretrained wrote: adapter_config.json and adapter_model.safetensors. Everything
    is checked before a byte is stored: tensors against the base's modules and shapes, no NaN, no pickle. REPO
    (owner/name, where no such folder is here) is pinned to a commit; `inlay pull` is the same.

    \b
    Example:
      inlay add legal-clauses out/legal --base ./mini-instruct --why "first"
      inlay add legal-clauses acme/legal-clauses --base ./mini-instruct --revision v2
      inlay add legal-clauses out/pissa --initial out/pissa-start --base ./mini-instruct
      inlay add legal-clauses out/dora --truncate 16 --base ./mini-instruct
    """
    from inlay.cli.bases import base_named
    from inlay.hub import names_repo, pull

    from_hub = revision is not None or names_repo(folder)
    changing = [
        option
        for option, value in (
            ("--initial", initial),
            ("--truncate", truncate),
            ("--truncate-energy", truncate_energy),
        )
        if value is not None
    ]
    if len(changing) > 1:
        raise click.UsageError(f"one of {' and '.join(changing)} is meant")
    if changing and from_hub:
        raise click.UsageError(f"{changing[0]} goes with a FOLDER, not with a repository")

    run = None
    if examples is not None:
        from inlay.evals.prompts import read_prompts

        run = {"examples": read_prompts(examples)}
    registry = open_store(store)
    given: dict[str, Any] = {
        "base": base_named(base),
        "why": why,
        "run": run,
        "owner": owner,
        "allow_base_mismatch": allow_base_mismatch,
        "accept_prompt_change": accept_prompt_change,
        "tag": tags,
        "description": description,
    }
    if initial is not None:
        from inlay.composer.conversion import add_converted

        version = add_converted(registry, name, folder, initial, **given)
    elif changing:
        from inlay.composer.truncation import add_truncated

        version = add_truncated(registry, name, folder, rank=truncate, energy=truncate_energy, **given)
    elif from_hub:
        version = pull(
            folder,
            name,
            store=registry,
            revision=revision,
            progress=bars_wanted(as_json),
            announce=lambda line: click.echo(line, err=True),
            **given,
        )
    else:
        version = registry.add(name, folder, **given)
    from inlay.cli.look import version_dict

    size = f"{version.kind}, rank {version.rank}, {version.parameters:,} parameters, {version.size:,} bytes"
    notes = "".join(f"\nnote: {note}" for note in version.notes)
    if changing and initial is None:
        from inlay.composer.truncation import said_of

        notes += f"\nnote: {said_of(version.lineage)}"
    emit("add", as_json, version_dict(version), f"registered {version.ref}: {size}\n{version.digest}{notes}")


@click.command("fsck")
@click.option(
    "--head",
    metavar="'SEQ HASH'|FILE",
    help="A head that `inlay log --head` printed: finds a cut or rewritten journal.",
)
@click.option("--repair", is_flag=True, help="Put back missing triggers and, with --from, damaged objects.")
@click.option("--from", "bundle", metavar="BUNDLE", help="With --repair: where sound objects are taken from.")
@common
def fsck_verb(head: str | None, repair: bool, bundle: str | None, store: str | None, as_json: bool) -> int:
    """Read every byte and row of the store and say what is wrong; exit code 1 if anything is.

    Rows are never repaired: where they were changed, unbundle a complete bundle into a new store.

    \b
    Example:
      inlay fsck
      inlay log --head > head.txt; inlay fsck --head head.txt
      inlay fsck --repair --from all.bundle
    """
    import inlay

    if bundle is not None and not repair:
        raise click.UsageError("--from goes with --repair")
    registry = inlay.Registry.open(store, check=False)
    exported = None if head is None else _exported_head(head)
    repaired = registry.repair(bundle) if repair else []
    problems = registry.fsck(exported)
    lines = [*repaired, *problems] or ["the store is sound"]
    if repaired and not problems:
        lines.append("the store is sound now")
    emit("fsck", as_json, {"problems": problems, "repaired": repaired}, lambda: printable_lines(lines))
    return 1 if problems else 0


def _exported_head(text: str) -> tuple[int, str]:
    """(seq, hash) out of "12 sha256:…" or of a file that holds it."""
    from inlay.registry.canonical import is_digest
    from inlay.registry.recipes import read_text

    said = text if " " in text.strip() else read_text(Path(text), "head")
    seq, _, digest = said.strip().partition(" ")
    if not seq.isdecimal() or len(seq) > 15 or not is_digest(digest.strip()):
        raise click.UsageError("a head is what `inlay log --head` printed: a number and a hash")
    return int(seq), digest.strip()


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@common
def gc_verb(dry_run: bool, store: str | None, as_json: bool) -> None:
    """Remove temporary files and objects that nothing refers to, older than a day.

    \b
    Example:
      inlay gc --dry-run
    """
    gone = [str(path) for path in open_store(store).gc(dry_run=dry_run)]
    said = "would remove" if dry_run else "removed"
    listed = "".join(f"\n{path}" for path in gone)
    emit("gc", as_json, {"removed": gone, "dry_run": dry_run}, f"{said} {len(gone)} files{listed}")
