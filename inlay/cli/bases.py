"""How a base is named on the command line."""

from __future__ import annotations


def base_named(base: str | None) -> str | None:
    """`builtin` is the small base that ships with Inlay; anything else is a folder or a hub id."""
    if base == "builtin":
        from inlay.builtin import base_path

        return str(base_path())
    return base
