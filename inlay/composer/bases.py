"""Is the base at hand the one that a version or lock was made for, and where does it lie?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.errors import BaseMismatch, InputError
from inlay.registry import BaseRef

if TYPE_CHECKING:
    from inlay.evals.inference import Base
    from inlay.registry.fingerprint import BaseFingerprint


def check_base(wanted: BaseRef, loaded: Base, ref: str, *, accept_prompt_change: bool = False) -> None:
    """BaseMismatch unless the loaded base is the one that `ref` was made for."""
    check_fingerprint(wanted, loaded.fingerprint, ref, accept_prompt_change=accept_prompt_change)


def check_fingerprint(
    wanted: BaseRef, found: BaseFingerprint, ref: str, *, accept_prompt_change: bool = False
) -> None:
    """`check_base` for a base that was not loaded."""
    if found.weights != wanted.weights:
        raise BaseMismatch(
            f"{ref} was made for the base {wanted.name} ({wanted.weights[:19]}…), "
            f"and {found.name} has the weights {found.weights[:19]}…",
            fix="name the right base with --base",
        )
    if found.prompt != wanted.prompt and not accept_prompt_change:
        raise BaseMismatch(
            f"{ref} was made for another tokenizer or chat template of {wanted.name}",
            fix="acknowledge the change with --accept-prompt-change",
        )


def whereabouts(base: BaseRef) -> str:
    """Where the registry last saw a base; InputError if nobody told it."""
    if not base.source:
        raise InputError(f"nobody told where the base {base.name} lies", fix="name it with --base")
    return base.source
