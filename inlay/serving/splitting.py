"""Canaries: one name whose requests are shared out among references, each user always to the same one.

    acme=acme@prod:95,acme@canary:5

Where a user falls is sha256(name, user) as a number in [0, 100), and nothing else: it is the same on every
server and after every restart. The arms but the first lie side by side from 0 upward in the order they are
written, and the first has the rest: whoever has a canary keeps it while its share grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from inlay.errors import InputError
from inlay.registry import check_name, parse_reference
from inlay.registry.recipes import BASE

_POINTS = 1 << 64


@dataclass(frozen=True)
class Arm:
    """`share`: percent of the users."""

    ref: str
    share: Fraction


@dataclass(frozen=True)
class Splits:
    """The arms of each split name, as they were written."""

    arms: Mapping[str, tuple[Arm, ...]]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Splits:
        """InputError for a text that is no split, shares that are not 100 percent together, a reference that
        is none or stands twice, a name that is split twice."""
        found: dict[str, tuple[Arm, ...]] = {}
        for text in texts:
            name, separator, rest = text.partition("=")
            if not separator:
                raise _malformed(text)
            if check_name(name) in found:
                raise InputError(f"a name is split once, and {name} is split twice")
            found[name] = _arms(text, rest)
        return cls(found)

    def __contains__(self, name: str) -> bool:
        return name in self.arms

    def arm(self, name: str, sticky: str) -> str:
        """The reference that requests for `name` get, if they come from `sticky`: a user, a key. A name that
        is not split is itself."""
        arms = self.arms.get(name)
        if arms is None:
            return name
        words = f"{name}\n{sticky}".encode("utf-8", "surrogatepass")
        point = Fraction(100 * int.from_bytes(hashlib.sha256(words).digest()[:8], "big"), _POINTS)
        end = Fraction(0)
        for arm in arms[1:]:
            end += arm.share
            if point < end:
                return arm.ref
        return arms[0].ref


def _arms(text: str, rest: str) -> tuple[Arm, ...]:
    arms: list[Arm] = []
    for part in rest.split(","):
        ref, separator, share = part.strip().rpartition(":")
        if not separator:
            raise _malformed(text)
        if ref != BASE:
            ref = str(parse_reference(ref))
        if any(arm.ref == ref for arm in arms):
            raise InputError(f"an arm stands once in a split, and {ref} stands twice in {text[:120]!r}")
        arms.append(Arm(ref, _percent(share, text)))
    total = sum(arm.share for arm in arms)
    if total != 100:
        raise InputError(
            f"the shares of a split must be 100 percent together, and those of {text[:120]!r} are "
            f"{float(total):g}"
        )
    return tuple(arms)


def _percent(share: str, text: str) -> Fraction:
    # As people write numbers: Fraction alone would take 1e9999999 and 1/3.
    if not share.replace(".", "", 1).isdecimal() or not share.isascii() or len(share) > 12:
        raise InputError(
            f"a share is a number of percent from 0 to 100, got {share[:20]!r} in {text[:120]!r}"
        )
    return Fraction(share)


def _malformed(text: str) -> InputError:
    return InputError(
        f"a split names its arms with their shares, got {text[:120]!r}",
        fix="write it like acme=acme@prod:95,acme@canary:5",
    )
