"""What the registry hands out: frozen records of what was stored. None of them can change what is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inlay.errors import InputError
from inlay.registry.canonical import digest_of_json


@dataclass(frozen=True)
class BaseRef:
    """Which base a version or a lock is for. `source` is where it lay when it was named, or its hub id."""

    weights: str
    prompt: str
    name: str
    revision: str | None = None
    source: str = ""


State = Literal["active", "yanked", "retired", "purged"]
"""Only what is active may be promoted, locked or rolled back to. The last that applies is named."""


@dataclass(frozen=True)
class Version:
    """One immutable set of bytes of an adapter. `card` holds fields of the model card that came with it."""

    name: str
    number: int
    digest: str
    kind: str
    rank: int
    targets: tuple[str, ...]
    parameters: int
    exactness: str
    size: int
    base: BaseRef
    created: str
    author: str
    why: str
    state: State
    base_mismatch: bool = False
    trained_on: Mapping[str, str] | None = None
    lineage: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    licence: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    run: str | None = field(default=None, repr=False)
    folder: Callable[[str], Path] | None = field(default=None, repr=False, compare=False)

    @property
    def ref(self) -> str:
        """`name@v3`."""
        return f"{self.name}@v{self.number}"

    @property
    def yanked(self) -> bool:
        """Whether it was marked as bad."""
        return self.state == "yanked"

    @property
    def path(self) -> Path:
        """A folder with the files under their own names, as links into the store; made and re-hashed on each
        use.

        Raises IntegrityError if a file no longer has the bytes it was registered with.
        """
        assert self.folder is not None, "a version that did not come from a Registry has no folder"
        return self.folder(self.digest)


@dataclass(frozen=True)
class Member:
    """An adapter's version inside a lock, at `path` ("stack.0.merge.1"; "" for the root)."""

    name: str
    number: int
    digest: str
    weight: float
    path: str

    @property
    def ref(self) -> str:
        """`name@v3`."""
        return f"{self.name}@v{self.number}"


@dataclass(frozen=True)
class Lock:
    """One immutable version of a variant: its recipe with every reference pinned to a digest.

    `recipe` is the text as it was written, `tree` the pinned tree, `members` the adapters at every depth.
    """

    name: str
    number: int
    digest: str
    recipe: str
    tree: Mapping[str, Any]
    base: BaseRef
    members: tuple[Member, ...]
    guard: Mapping[str, Any] | None
    created: str
    author: str
    why: str
    state: State
    provenance: Mapping[str, Any] | None = None

    @property
    def ref(self) -> str:
        """`name@v3`."""
        return f"{self.name}@v{self.number}"

    @property
    def yanked(self) -> bool:
        """Whether it was marked as bad."""
        return self.state == "yanked"


@dataclass(frozen=True)
class Dependent:
    """A live variant alias whose current lock contains something, and through which members it does."""

    variant: str
    alias: str
    lock: Lock
    members: tuple[Member, ...]

    @property
    def ref(self) -> str:
        """`variant@alias`."""
        return f"{self.variant}@{self.alias}"


@dataclass(frozen=True)
class Drift:
    """A live variant alias whose lock differs from what its recipe would resolve to now.

    `changes` has (reference as written, pinned version, version it means now or "nothing").
    """

    variant: str
    alias: str
    lock: Lock
    changes: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class NameRow:
    """One line of a listing. `aliases` maps each alias to what it points to, or to "disabled"; `yanked`
    counts.
    """

    name: str
    kind: str
    latest: int
    aliases: Mapping[str, str]
    yanked: int
    owner: str
    created: str
    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Described:
    """What people say about one version or lock."""

    description: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """What people say about a name, and about its versions or locks by number."""

    name: str
    kind: str
    owner: str
    description: str = ""
    tags: tuple[str, ...] = ()
    versions: Mapping[int, Described] = field(default_factory=dict)


@dataclass(frozen=True)
class SuiteRow:
    """A stored suite; `items` is the digest of its JSONL in the objects."""

    name: str
    digest: str
    items: str
    metric: str
    skills: Mapping[str, Any]
    n: int
    created: str


@dataclass(frozen=True)
class EvalRecord:
    """One immutable score. Two of them can be compared item by item when suite, metric, protocol and base
    agree.

    `subject` is a digest or "base". `score`, `low`, `high` are fractions in the metric's own range, `low`
    and `high` the two-sided 95% interval. `outcomes` are in the suite's order. `protocol` is the digest of
    `protocol_detail` (template, few-shot, decoding, seed, dtype, quantisation). Device and library
    versions are recorded, not keyed. `id` orders them and pages through them; 0 where it is not kept.
    """

    subject: str
    base_weights: str
    base_prompt: str
    suite: str
    suite_name: str
    metric: str
    protocol: str
    protocol_detail: Mapping[str, Any]
    score: float
    n: int
    low: float
    high: float
    outcomes: tuple[bool | float, ...]
    splits: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    id: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if len(self.outcomes) != self.n or self.n < 1:
            raise InputError(
                f"an eval has one outcome for each of its items, got {len(self.outcomes)} for n={self.n}"
            )

    @property
    def key(self) -> str:
        """The digest under which there is one such eval and no other."""
        return digest_of_json(
            [self.subject, self.base_weights, self.base_prompt, self.suite, self.metric, self.protocol]
        )

    def comparable(self, other: EvalRecord) -> bool:
        """Whether both were measured on the same items, metric, protocol and base."""
        return (self.base_weights, self.base_prompt, self.suite, self.metric, self.protocol) == (
            other.base_weights,
            other.base_prompt,
            other.suite,
            other.metric,
            other.protocol,
        )


@dataclass(frozen=True)
class Bundled:
    """What went into a bundle. `digest` is the bundle's; `bytes` the size of the file."""

    path: Path
    digest: str
    names: tuple[str, ...]
    versions: int
    locks: int
    evals: int
    events: int
    objects: int
    bytes: int


@dataclass(frozen=True)
class Unbundled:
    """What a bundle brought that was not here: versions and locks by reference, journal rows, scores,
    objects. `notes` are sentences about what was left out, and why.
    """

    digest: str
    names: tuple[str, ...]
    versions: tuple[str, ...]
    locks: tuple[str, ...]
    events: int
    evals: int
    objects: int
    notes: tuple[str, ...] = ()
