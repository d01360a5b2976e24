"""Every look-up and page of the registry on a store of `large_store`, and what each costs SQLite.

The cost is counted in SQLite's own instructions (https://www.sqlite.org/opcode.html): a number that no load
on the machine changes, and that grows with the store where something is scanned or sorted.

    python benchmarks/look_ups.py          # stores of 1,000 and 10,000 versions
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from large_store import MAIN_SUITES, Layout, digest, make

from inlay.registry import Registry

_STEP = 7919  # a prime: with it, following numbers are spread over the whole of a list


@dataclass(frozen=True)
class LookUp:
    """A call on a registry, with the most it may cost over the same on 1,000 versions.

    `call(i)` says how many records it found, which is the same in a store of any size. Each `i` asks for
    another name, number or digest, where the call is about one.
    """

    what: str
    limit: float
    call: Callable[[int], int]


def look_ups(registry: Registry, layout: Layout, *, page: int = 50) -> list[LookUp]:
    """What a store of `layout` is asked, in the words of the registry's methods; `page` records a page.

    Full pages from the middle want 20 versions in the store for each record on a page.
    """
    tasks, customers, suites = layout.tasks, layout.customers, layout.suites

    def task(i: int) -> str:
        return tasks[i * _STEP % len(tasks)]

    def exact(i: int) -> str:
        return f"{task(i)}@v{4 + i % 3}"

    def in_use(i: int) -> str:  # the eighth version of the first of every five tasks is in one live lock
        return f"{tasks[i * _STEP % len(customers) * 5]}@v8"

    def customer(i: int) -> str:
        return customers[i * _STEP % len(customers)]

    def suite(i: int) -> str:
        return suites[i * _STEP % MAIN_SUITES]

    newest, last = registry.journal_head()[0], registry.evals(limit=1)[0].id
    names = sorted([*tasks, *customers, "mix", "nightly", "tone"])
    middle, name = layout.nightly // 2, names[len(names) * 2 // 5]
    return [
        LookUp("resolve name@prod", 2, lambda i: bool(registry.resolve(f"{task(i)}@prod"))),
        LookUp("resolve variant@prod", 2, lambda i: bool(registry.resolve(f"{customer(i)}@prod"))),
        LookUp("resolve name@v5", 2, lambda i: bool(registry.resolve(exact(i)))),
        LookUp("resolve sha256:…", 2, lambda i: bool(registry.resolve(digest(exact(i))[:19]))),
        LookUp(
            "resolve name@prod at=…", 2, lambda i: bool(registry.resolve(f"{task(i)}@prod", at="2100-01-01"))
        ),
        LookUp("current", 2, lambda i: bool(registry.current(task(i), "prod"))),
        LookUp("about", 2, lambda i: bool(registry.about(task(i)))),
        LookUp("guard", 2, lambda i: registry.guard(task(i), "prod") is None),
        LookUp("dependents", 2, lambda i: len(registry.dependents(in_use(i)))),
        LookUp("drifted of a variant", 2, lambda i: len(registry.drifted(customer(i)))),
        LookUp("evals of a subject", 2, lambda i: len(registry.evals(exact(i)))),
        LookUp("evals of a subject on a suite", 2, lambda i: len(registry.evals(in_use(0), suite(i))) >= 0),
        LookUp("suite by name", 2, lambda i: bool(registry.suite(suites[i * _STEP % len(suites)]))),
        LookUp("suite by digest", 2, lambda i: bool(registry.suite(digest(suites[i * _STEP % len(suites)])))),
        LookUp("reports of a subject", 2, lambda i: len(registry.reports(exact(i)))),
        LookUp("names", 3, lambda i: len(registry.names(limit=page))),
        LookUp("names, from the middle", 3, lambda i: len(registry.names(limit=page, after=name))),
        LookUp("names of a kind", 3, lambda i: len(registry.names("adapter", limit=page))),
        LookUp("versions", 3, lambda i: len(registry.versions("nightly", limit=page))),
        LookUp(
            "versions, from the middle",
            3,
            lambda i: len(registry.versions("nightly", limit=page, before=middle)),
        ),
        LookUp("versions with a tag", 3, lambda i: len(registry.versions(task(i), limit=page, tag="gdpr"))),
        LookUp("locks", 3, lambda i: len(registry.locks("mix", limit=page))),
        LookUp("locks, from the middle", 3, lambda i: len(registry.locks("mix", limit=page, before=middle))),
        LookUp("journal", 3, lambda i: len(registry.journal(limit=page))),
        LookUp(
            "journal, from the middle", 3, lambda i: len(registry.journal(limit=page, before=newest // 2))
        ),
        LookUp("journal of a name", 3, lambda i: len(registry.journal("nightly", limit=page))),
        LookUp(
            "journal of a name, from the middle",
            3,
            lambda i: len(registry.journal("nightly", limit=page, before=newest // 2)),
        ),
        LookUp("evals", 3, lambda i: len(registry.evals(limit=page))),
        LookUp("evals, from the middle", 3, lambda i: len(registry.evals(limit=page, before=last // 2))),
        LookUp("evals on a suite", 3, lambda i: len(registry.evals(suite=suite(i), limit=page))),
        LookUp(
            "evals on a suite, from the middle",
            3,
            lambda i: len(registry.evals(suite=suite(i), limit=page, before=last // 2)),
        ),
        LookUp(
            "evals on a suite by digest",
            3,
            lambda i: len(registry.evals(suite=digest(suite(i)), limit=page)),
        ),
    ]


def instructions(registry: Registry, call: Callable[[], object]) -> int:
    """How many of SQLite's instructions `call` takes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    connection = registry._store.db.connection
    connection.set_progress_handler(count, 1)
    try:
        call()
    finally:
        connection.set_progress_handler(None, 1)
    return counted


def main() -> None:
    sizes = (1_000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        stores = []
        for versions in sizes:
            make(Path(folder) / str(versions), Layout(versions))
            registry = Registry.open(Path(folder) / str(versions))
            stores.append((registry, look_ups(registry, Layout(versions))))
        print(f"SQLite's instructions with {' and '.join(f'{n:,}' for n in sizes)} versions")
        for few, many in zip(*(asked for _, asked in stores), strict=True):
            costs = [
                sum(instructions(registry, lambda i=i, asked=asked: asked.call(i)) for i in range(10)) / 10
                for (registry, _), asked in zip(stores, (few, many), strict=True)
            ]
            print(f"{few.what}: {costs[0]:,.0f} and {costs[1]:,.0f}, {costs[1] / costs[0]:.2f}x")
        for registry, _ in stores:
            registry.close()


if __name__ == "__main__":
    main()
