"""Every error that Inlay means to raise. Each is one line: the invariant, the value received, the fix.

`exit_code` is what the command line leaves with: 1 a guard or check said no, 2 bad input or usage,
3 the environment (busy, disk, network: try again), 130 interrupted. Anything else that escapes is a bug (70).
"""

from __future__ import annotations


class InlayError(Exception):
    """The root of all errors that Inlay raises on purpose.

    `message` says the invariant and the value received; `fix`, the next thing to try.
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class InputError(InlayError):
    """What was handed in (a file, a recipe, a name, a setting) breaks a rule."""


class ReferenceNotFound(InputError):
    """A name, version, alias or digest that the registry does not hold."""


class BaseMismatch(InputError):
    """An adapter meets a base whose fingerprint is not the one it was made for."""


class Conflict(InlayError):
    """Compare-and-swap failed: what was expected is no longer so, because somebody moved it."""

    exit_code = 1


class GuardRefused(InlayError):
    """A guard's threshold is not met, or there is not enough evidence that it is."""

    exit_code = 1


class IntegrityError(InlayError):
    """Bytes or rows are not what their digest says."""

    exit_code = 1


class StoreBusy(InlayError):
    """The store cannot be used right now: locked, full, read-only."""

    exit_code = 3


class Interrupted(InlayError):
    """Somebody asked for an end, and what had been done is kept."""

    exit_code = 130
