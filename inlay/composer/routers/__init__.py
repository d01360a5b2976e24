"""Routers: what chooses, for each request or token, among experts and the base. One file each, one name in
the tuple.

request.py      the caller names the expert
probe.py        ridge regression on hidden states of the bare base; the default
words.py        the same on the words of the prompt
centroid.py     the nearest mean of examples
arrow.py        token by token, by the strongest direction of each adapter
fitted.py       what probe, words and centroid share; ridge.py and calibration.py their mathematics
seen.py         what routers may know of a prompt
"""

from __future__ import annotations

from inlay.composer.routers.arrow import Arrow
from inlay.composer.routers.centroid import Centroid
from inlay.composer.routers.choice import Choice
from inlay.composer.routers.fitted import Fitted, Material
from inlay.composer.routers.probe import Probe
from inlay.composer.routers.request import Request
from inlay.composer.routers.seen import Seen
from inlay.composer.routers.words import Words

ROUTERS: tuple[type[Request] | type[Fitted] | type[Arrow], ...] = (Request, Probe, Words, Centroid, Arrow)
"""Every router a recipe may name; the name is the class's `name`."""

__all__ = [
    "ROUTERS",
    "Arrow",
    "Centroid",
    "Choice",
    "Fitted",
    "Material",
    "Probe",
    "Request",
    "Seen",
    "Words",
]
