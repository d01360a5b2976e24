"""inlay init, add, fsck, gc"""

from __future__ import annotations

from pathlib import Path

import click

from inlay.cli.console import common, emit, json_option, open_store, why_option


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
@click.argument("folder")
@click.option(
    "--base",
    required=True,
    metavar="BASE",
    help="The base it was trained on: a folder or a hub id; `builtin`.",
)
@click.option(
    "--examples", metavar="FILE", help='JSONL of {"prompt"}: requests this adapter is for, for routers.'
)
@click.option("--owner", help="Who answers for this name; kept with its first version.")
@click.option(
    "--allow-base-mismatch",
    is_flag=True,
    help="Register although it was trained on another base; recorded for good.",
)
@click.option(
    "--accept-prompt-change", is_flag=True, help="Register although tokenizer or chat template changed."
)
@why_option
@common
def add_verb(
    name: str,
    folder: str,
    base: str,
    examples: str | None,
    owner: str | None,
    allow_base_mismatch: bool,
    accept_prompt_change: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Register the adapter in FOLDER as the next version of NAME.

    FOLDER is what PEFT's save_pretrained wrote: adapter_config.json and adapter_model.safetensors. Everything
    is checked before a byte is stored: tensors against the base's modules and shapes, no NaN, no pickle.

    \b
    Example:
      inlay add legal-clauses out/legal --base ./mini-instruct --why "first"
    """
    from inlay.cli.bases import base_named

    run = None
    if examples is not None:
        from inlay.evals.prompts import read_prompts

        run = {"examples": read_prompts(examples)}
    registry = open_store(store)
    version = registry.add(
        name,
        folder,
        base=base_named(base),
        why=why,
        run=run,
        owner=owner,
        allow_base_mismatch=allow_base_mismatch,
        accept_prompt_change=accept_prompt_change,
    )
    from inlay.cli.look import version_dict

    size = f"{version.kind}, rank {version.rank}, {version.parameters:,} parameters, {version.size:,} bytes"
    notes = "".join(f"\nnote: {note}" for note in version.notes)
    emit("add", as_json, version_dict(version), f"registered {version.ref}: {size}\n{version.digest}{notes}")


@click.command("fsck")
@common
def fsck_verb(store: str | None, as_json: bool) -> int:
    """Read every byte and row of the store and say what is wrong; exit code 1 if anything is.

    \b
    Example:
      inlay fsck
    """
    import inlay

    problems = inlay.Registry.open(store, check=False).fsck()
    emit("fsck", as_json, {"problems": problems}, "\n".join(problems) or "the store is sound")
    return 1 if problems else 0


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
