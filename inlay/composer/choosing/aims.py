"""Which target suite, and which labelled examples, are for which adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inlay.composer.measure import SuiteLike, suite_of
from inlay.composer.merging.cat import Example
from inlay.composer.routing_report import declared_targets, expert_of
from inlay.errors import InputError, ReferenceNotFound
from inlay.evals.inference import as_messages
from inlay.evals.suites import Suite
from inlay.registry import Registry, Version, canonical

TargetsLike = Sequence[SuiteLike | tuple[str, SuiteLike]] | Mapping[str, SuiteLike | Sequence[SuiteLike]]


def aimed(store: Registry, versions: Sequence[Version], target: TargetsLike) -> list[tuple[Suite, int]]:
    """(suite, number of the adapter that it is for), each suite once.

    `target`: {adapter's name: its suites}; or suites, each alone or as (adapter's name, suite); alone it is
    for the adapter whose training declared it, else for the one of its name. Nothing stands for every suite
    that the adapters' trainings declared and the store has. Raises InputError
    for a suite that is for none or several, a name that is no adapter's, an adapter without a suite, a suite
    that is graded, two suites of one name.
    """
    found: list[tuple[Suite, int]] = []
    if isinstance(target, Mapping):
        found = [
            (suite_of(suite, store), number_of(versions, name))
            for name, suites in target.items()
            for suite in (
                suites if isinstance(suites, Sequence) and not isinstance(suites, str) else [suites]
            )
        ]
    elif target:
        declared = {version.digest: declared_targets(store, version) for version in versions}
        for each in target:
            name, given = each if isinstance(each, tuple) else (None, each)
            suite = suite_of(given, store)
            owner = _owner(suite, versions, declared) if name is None else number_of(versions, name)
            found.append((suite, owner))
    else:
        found = [
            (suite, number)
            for number, version in enumerate(versions)
            for suite in _kept(store, declared_targets(store, version))
        ]
    for number, version in enumerate(versions):
        if number not in {owner for _, owner in found}:
            raise InputError(
                f"every adapter must have examples to be measured on, and {version.ref} has no target suite",
                fix=f"name one: --eval {version.name}=SUITE (in Python target={{name: suite}})",
            )
    return found


def labelled_for(
    versions: Sequence[Version], examples: Mapping[str, Sequence[Example]], suites: Sequence[Suite]
) -> dict[str, list[Example]]:
    """The examples by the adapter's name; InputError for a name that is no adapter's, an adapter without
    examples where others have some, and an example that stands in one of the suites."""
    found: dict[str, list[Example]] = {}
    for name, pairs in examples.items():
        found.setdefault(versions[number_of(versions, name)].name, []).extend(pairs)
    for version in versions:
        if found and not found.get(version.name):
            raise InputError(
                f"labelled examples must be given for every adapter or for none, and {version.ref} has none",
                fix=f"give some: --examples {version.name}=FILE",
            )
    judged = {canonical(as_messages(item.chat)): suite.name for suite in suites for item in suite.items}
    for name, pairs in found.items():
        for number, (prompt, _) in enumerate(pairs, 1):
            suite = judged.get(canonical(as_messages(prompt)))
            if suite is not None:
                raise InputError(
                    f"examples must not stand in the suites that judge them, and example {number} of {name} "
                    f"is an item of {suite}",
                    fix="take others",
                )
    return found


def number_of(versions: Sequence[Version], name: str) -> int:
    """The number of the adapter called so, by its name or reference; InputError where there is none."""
    for number, version in enumerate(versions):
        if name in (version.name, version.ref):
            return number
    raise InputError(
        f"suites and examples are for one of the adapters, and {name[:60]!r} is none of them",
        fix=f"the adapters: {', '.join(version.name for version in versions)}",
    )


def check_suites(general: Sequence[Suite], target: Sequence[Suite]) -> None:
    """InputError where suites cannot be counted together: graded ones, two of one name, nothing general."""
    if not general:
        raise InputError("what is forgotten is judged on a general suite, and there is none", fix="name one")
    names = [suite.name for suite in (*general, *target)]
    for suite in (*general, *target):
        if suite.graded:
            raise InputError(
                f"items that are right or wrong are counted, and {suite.name} is graded by {suite.metric}",
                fix="name a suite with another metric",
            )
        if names.count(suite.name) > 1:
            raise InputError(
                f"each suite must have a name of its own, and {suite.name} is named more than once",
                fix="give one of the files another name, or leave it out",
            )


def _owner(suite: Suite, versions: Sequence[Version], declared: Mapping[str, set[str]]) -> int:
    if len(versions) == 1:
        return 0
    owner = expert_of(suite, [[version] for version in versions], declared)
    if owner is None:
        raise InputError(
            f"each target suite must be for one of the adapters, and nothing says for which {suite.name} is",
            fix=f"say it: --eval NAME={suite.name}; the adapters: "
            f"{', '.join(version.name for version in versions)}",
        )
    return owner


def _kept(store: Registry, digests: set[str]) -> list[Suite]:
    """Those of the declared suites that the store has, in a fixed order."""
    found = []
    for digest in sorted(digests):
        try:
            found.append(Suite.from_store(store, digest))
        except ReferenceNotFound:
            continue
    return sorted(found, key=lambda suite: suite.name)
