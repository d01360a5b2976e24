"""inlay push, pull, export"""

from __future__ import annotations

import click

from inlay.cli.console import bars_wanted, base_options, coming_in, common, emit, open_store


@click.command("push")
@click.argument("ref")
@click.argument("repo")
@click.option("--private", is_flag=True, help="Private, if the repository is made now.")
@click.option("--message", metavar="TEXT", help="The commit's first line; by default REF and its reason.")
@click.option(
    "--revision", default="main", metavar="BRANCH", show_default=True, help="The branch to commit to."
)
@common
def push_verb(
    ref: str,
    repo: str,
    private: bool,
    message: str | None,
    revision: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Send REF to the Hugging Face Hub's repository REPO (owner/name), with a model card.

    A version goes byte for byte, a variant is exported as one plain adapter first. Log in with `hf auth
    login` or set HF_TOKEN. A push that was cut goes on; pushing the same again makes no commit.

    \b
    Example:
      inlay push legal-clauses@prod acme/legal-clauses
    """
    from inlay.hub import push
    from inlay.registry.printable import printable

    done = push(
        ref,
        repo,
        store=open_store(store),
        private=private,
        message=message,
        revision=revision,
        progress=bars_wanted(as_json),
    )
    if done.changed:
        said = f"pushed {done.ref} to {repo}: {len(done.files)} files, {done.nbytes:,} bytes"
    else:
        said = f"{repo} has {done.ref} already: nothing changed, no commit was made"
    notes = "".join(f"\nnote: {printable(note)}" for note in done.notes)
    emit("push", as_json, done.to_dict(), f"{said}\n{done.url}{notes}")


@click.command("pull")
@click.argument("repo")
@click.argument("name")
@click.option("--revision", metavar="REVISION", help="A branch, tag or commit; by default the main branch.")
@coming_in
@common
def pull_verb(
    repo: str,
    name: str,
    base: str,
    revision: str | None,
    owner: str | None,
    tags: tuple[str, ...],
    description: str | None,
    allow_base_mismatch: bool,
    accept_prompt_change: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Register the adapter in the hub's repository REPO as the next version of NAME.

    The revision is resolved to a commit, which is kept. Only a configuration, safetensors, a card and a
    licence are downloaded, verified by the digests that the hub states, and checked like any other adapter.
    A download that was cut goes on where it stopped.

    \b
    Example:
      inlay pull acme/legal-clauses legal-clauses --base ./mini-instruct
    """
    from inlay.cli.bases import base_named
    from inlay.cli.look import version_dict
    from inlay.hub import pull
    from inlay.registry.printable import printable

    version = pull(
        repo,
        name,
        base=base_named(base),
        store=open_store(store),
        revision=revision,
        why=why,
        owner=owner,
        tag=tags,
        description=description,
        allow_base_mismatch=allow_base_mismatch,
        accept_prompt_change=accept_prompt_change,
        progress=bars_wanted(as_json),
        announce=lambda line: click.echo(line, err=True),
    )
    hub = (version.lineage or {}).get("hub", {})
    notes = "".join(f"\nnote: {printable(note)}" for note in version.notes)
    said = f"registered {version.ref} from {repo} at {hub.get('commit', 'an unknown commit')}"
    emit("pull", as_json, {**version_dict(version), "hub": hub}, f"{said}\n{version.digest}{notes}")


@click.command("export")
@click.argument("ref")
@click.argument("folder")
@click.option(
    "--for",
    "engine",
    metavar="ENGINE",
    help="Refuse what this engine could not load, and say what it needs: peft, vllm, sglang or lorax.",
)
@click.option(
    "--full", is_flag=True, help="Write the base with the deltas in its weights, as one checkpoint."
)
@base_options
@common
def export_verb(
    ref: str,
    folder: str,
    engine: str | None,
    full: bool,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Write REF into FOLDER as one plain PEFT adapter, which PEFT and serving engines read alike.

    REF is a version, or a variant whose recipe is a stack or a merge. FOLDER must not exist, or be empty.
    --base is where the base lies, which --full reads and leaves as it is.

    \b
    Example:
      inlay export acme@prod out/acme --for vllm
    """
    from inlay.cli.bases import base_or_last
    from inlay.composer.export import export
    from inlay.registry.printable import printable

    made = export(
        ref,
        folder,
        store=open_store(store),
        engine=engine,
        full=full,
        base=base_or_last(base),
        accept_prompt_change=accept_prompt_change,
    )
    members = " + ".join(name if weight == 1.0 else f"{weight:g} × {name}" for name, weight in made.members)
    what = "modules of the base changed" if made.full else "modules"
    lines = [
        f"exported {made.ref} to {folder}: {members}",
        f"{made.modules} {what}, rank {made.rank}, {made.parameters:,} parameters, {made.nbytes:,} bytes",
        *(f"{finding.level}: {printable(finding.sentence())}" for finding in made.findings),
    ]
    emit("export", as_json, made.to_dict(), "\n".join(lines))
