"""Routers: what chooses, for each request, one expert or the base. One file each, one name in the tuple."""

from __future__ import annotations

from inlay.composer.routers.probe import Probe

ROUTERS = (Probe,)
"""Every router a recipe may name; the name is the class's `name`."""

__all__ = ["ROUTERS", "Probe"]
