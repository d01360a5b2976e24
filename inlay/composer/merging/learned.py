"""What CAT learned becomes a version of its own: an exact LoRA, composed like any other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.composer.bases import check_base, whereabouts
from inlay.composer.export import export_made
from inlay.composer.factors import read_adapter
from inlay.composer.merging.cat import Cat, Example, Learning, cat
from inlay.composer.model import BaseLike
from inlay.errors import InputError
from inlay.evals.inference import Base, as_messages, load_base
from inlay.evals.scoring import library_versions
from inlay.registry import Registry, Version
from inlay.registry.canonical import digest_of_json

if TYPE_CHECKING:
    from inlay.evals.inference import Progress, Prompt

EXAMPLES_KEPT = 64
"""Prompts kept in the record: what a router learns this adapter's requests from."""


def add_cat(
    store: Registry,
    name: str,
    members: Sequence[str | Version],
    examples: Sequence[Example],
    *,
    base: BaseLike = None,
    general: Sequence[Prompt] = (),
    learning: Learning | None = None,
    rank: int | None = None,
    energy: float | None = None,
    accept_prompt_change: bool = False,
    progress: Progress | None = None,
    **given: Any,
) -> Version:
    """Learn the sum of `members` by `cat`, and register it as the next version of `name`.

    `base`: as in `compose`. `given`: what else `Registry.add` takes (why, owner, tag, description). The
    lineage names the members' digests, those of examples and general prompts, and the settings; the
    coefficients are in the version's record. Raises InputError as `cat` and `Registry.add` do and for a
    member that is no active adapter version, ReferenceNotFound, BaseMismatch.
    """
    learning = learning or Learning()
    versions = [_version(store, member) for member in members]
    if not versions:
        raise InputError("cat needs at least one member, got none")
    loaded = base if isinstance(base, Base) else load_base(base or whereabouts(versions[0].base))
    for version in versions:
        check_base(version.base, loaded, version.ref, accept_prompt_change=accept_prompt_change)
    made = cat(
        [read_adapter(version, store=store) for version in versions],
        examples,
        loaded,
        general=general,
        learning=learning,
        rank=rank,
        energy=energy,
        progress=progress,
    )
    given |= {"rank": rank, "energy": energy, "accept_prompt_change": accept_prompt_change}
    return keep_cat(
        store, name, made, versions, examples, loaded, general=general, learning=learning, **given
    )


def keep_cat(
    store: Registry,
    name: str,
    made: Cat,
    versions: Sequence[Version],
    examples: Sequence[Example],
    base: Base,
    *,
    general: Sequence[Prompt],
    learning: Learning,
    rank: int | None = None,
    energy: float | None = None,
    accept_prompt_change: bool = False,
    **given: Any,
) -> Version:
    """Register what `cat` made of `versions`, as `add_cat` does; the arguments are those it was made with."""
    settings = {**asdict(learning), "rank": rank, "energy": energy}
    prompts = [as_messages(prompt)[-1]["content"] for prompt, _ in examples]
    data = digest_of_json([[as_messages(prompt), answer] for prompt, answer in examples])
    run = {
        "base": {"weights": base.fingerprint.weights, "prompt": base.fingerprint.prompt},
        "coefficients": {module: list(found) for module, found in made.coefficients.items()},
        "dataset": {"digest": data, "name": "examples of cat", "rows": len(examples)},
        "drift": made.drift,
        "examples": list(dict.fromkeys(prompts))[:EXAMPLES_KEPT],
        "general_prompts": len(general),
        "loss": made.loss,
        "settings": {"method": "cat", **settings},
        "steps": learning.steps,
        "truncation": dict(made.truncation),
        "versions": library_versions(),
    }
    lineage = {
        "method": "cat",
        "members": [version.digest for version in versions],
        "examples": data,
        "general": digest_of_json([as_messages(prompt) for prompt in general]),
        **settings,
    }
    with tempfile.TemporaryDirectory(prefix="inlay-cat-") as scratch:
        folder = Path(scratch) / "adapter"
        export_made(made, versions, folder, store=store)
        return store.add(
            name,
            folder,
            base=base.fingerprint,
            run=run,
            lineage=lineage,
            accept_prompt_change=accept_prompt_change,
            **given,
        )


def _version(store: Registry, member: str | Version) -> Version:
    found = store.resolve(member) if isinstance(member, str) else member
    if not isinstance(found, Version):
        raise InputError(f"members of cat are adapter versions, and {found.ref} is a lock")
    if found.state != "active":
        raise InputError(f"{found.ref} was {found.state}, nothing new must be made of it")
    return found
