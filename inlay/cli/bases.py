"""How a base is named on the command line."""

from __future__ import annotations


def base_named(base: str) -> str:
    """`builtin` is the small base that ships with Inlay; anything else is a folder or a hub id."""
    if base == "builtin":
        from inlay.builtin import base_path

        return str(base_path())
    return base


def base_or_last(base: str | None) -> str | None:
    """The base that was named, or None for where the registry last saw it."""
    return None if base is None else base_named(base)
