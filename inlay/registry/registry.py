"""The Registry: what exists, what it scored, which one is live. One method a deed; the deeds live in the
files beside.

No torch here, and nothing of the siblings: statistics come in through `Registry.judge`. What only few verbs
need is imported where it is called, because every `inlay ls` waits for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from inlay.errors import InputError
from inlay.registry import aliases, describing, evidence, journal, keys, listing, locking, lookup
from inlay.registry.canonical import digest_of, whoami
from inlay.registry.fingerprint import BaseFingerprint
from inlay.registry.guards import Guard, Judge, Verdict
from inlay.registry.journal import Event
from inlay.registry.keys import ApiKey
from inlay.registry.names import check_alias, check_name
from inlay.registry.recipes import Recipe
from inlay.registry.records import (
    About,
    BaseRef,
    Bundled,
    Dependent,
    Drift,
    EvalRecord,
    Lock,
    NameRow,
    SuiteRow,
    Unbundled,
    Version,
)
from inlay.registry.store import Store, open_store

GRACE_SECONDS = 24 * 3600.0
"""How old an object that nothing refers to must be before `gc` takes it."""


class Registry:
    """An open store. Also a context manager. Threads may share it; other processes open their own.

    References are `name@v3`, `name@alias`, `name@sha256:ab12…`, or `name` alone for `name@prod`.
    Everything that changes what is live takes `who` ($INLAY_USER, else the account's name; advisory) and
    leaves journal rows.
    """

    judge: ClassVar[Judge | None] = None

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def open(cls, path: str | Path | None = None, *, create: bool = False, check: bool = True) -> Registry:
        """Open the store at `path`; None means $INLAY_STORE, else the nearest `adapters_store` upward.

        `create` makes it where it is missing; `check=False` leaves missing triggers to `fsck`. Raises
        InputError if there is none or it is newer than this code, IntegrityError if its triggers are gone,
        StoreBusy.
        """
        return cls(open_store(path, create=create, check=check))

    @property
    def path(self) -> Path:
        """The store's folder."""
        return self._store.path

    def close(self) -> None:
        """Close the file. What was done stays."""
        self._store.db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What exists

    def add(
        self,
        name: str,
        folder: str | Path,
        *,
        base: BaseFingerprint | str | Path,
        why: str = "",
        run: Mapping[str, Any] | None = None,
        lineage: Mapping[str, Any] | None = None,
        owner: str | None = None,
        allow_base_mismatch: bool = False,
        accept_prompt_change: bool = False,
        tag: Sequence[str] = (),
        description: str | None = None,
    ) -> Version:
        """Register the PEFT adapter in `folder`, made for `base`, as the next version of `name`.

        All is checked before a byte is stored (see `inlay.registry.ingest`). The same bytes again give the
        version they are already. `run` is the training record, kept as an object; its "base" ({"weights",
        "prompt"}) is compared with `base`. Raises InputError naming what does not fit, BaseMismatch,
        StoreBusy.
        """
        who = whoami()
        from inlay.registry import adding

        return adding.add(
            self._store,
            name,
            folder,
            base=base,
            why=why,
            run=run,
            lineage=lineage,
            owner=owner or who,
            who=who,
            allow_base_mismatch=allow_base_mismatch,
            accept_prompt_change=accept_prompt_change,
            tag=tag,
            description=description,
        )

    def names(
        self,
        kind: str | None = None,
        *,
        tag: str | None = None,
        owner: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[NameRow]:
        """Names in alphabetical order: all, or those of a kind ("adapter", "variant"), with a tag (on the
        name or on any version), of an owner; at most `limit` from behind the name `after`.
        """
        return listing.names(self._store, kind=kind, owner=owner, tag=tag, limit=limit, after=after)

    def versions(
        self, name: str, *, limit: int | None = None, before: int | None = None, tag: str | None = None
    ) -> list[Version]:
        """The versions of an adapter, newest first: at most `limit`, with a number below `before`, with a
        tag.
        """
        numbers = None if tag is None else describing.numbers(self._store, name, tag)
        return lookup.versions(self._store, name, limit=limit, before=before, numbers=numbers)

    def locks(
        self, name: str, *, limit: int | None = None, before: int | None = None, tag: str | None = None
    ) -> list[Lock]:
        """The locks of a variant, as `versions` lists those of an adapter."""
        numbers = None if tag is None else describing.numbers(self._store, name, tag)
        return lookup.locks(self._store, name, limit=limit, before=before, numbers=numbers)

    def describe(
        self,
        ref: str,
        *,
        owner: str | None = None,
        description: str | None = None,
        tag: Sequence[str] = (),
        untag: Sequence[str] = (),
        why: str = "",
        who: str | None = None,
    ) -> Event | None:
        """Say something about a name ("legal") or an exact version ("legal@v2"); None if it is said already.

        Tags are words, `gdpr` or `stage=pilot`. An owner is of a name. Journaled; it moves nothing.
        """
        return describing.describe(
            self._store,
            ref,
            owner=owner,
            description=description,
            tag=tag,
            untag=untag,
            why=why,
            who=who or whoami(),
        )

    def about(self, name: str) -> About:
        """Owner, description and tags of a name and of its versions or locks."""
        return describing.about(self._store, name)

    def resolve(self, ref: str, *, at: str | datetime | None = None) -> Version | Lock:
        """What `ref` means, now or at a moment (ISO 8601; UTC where it has no zone).

        Raises ReferenceNotFound, with the nearest names, if it means nothing; InputError if it is no
        reference.
        """
        return lookup.resolve(self._store, ref, at=at)

    def current(self, name: str, alias: str) -> Version | Lock | None:
        """What the alias points to; None if it never did, or is disabled."""
        return lookup.current(self._store, check_name(name), check_alias(alias))

    def aliases(self, name: str) -> dict[str, str]:
        """{alias: what it points to ("legal@v2"), or "disabled"} of a name, in alphabetical order."""
        lookup.need_name(self._store, name)
        moves = journal.live(self._store.db, [name]).get(name, {})
        return {alias: move.to_ref or "disabled" for alias, move in moves.items()}

    def run_of(self, version: Version) -> dict[str, Any] | None:
        """The training record that came with a version, verified; None if none did."""
        if version.run is None:
            return None
        return json.loads(self._store.objects.read(version.run, what=f"training record of {version.ref}"))

    def read_file(self, version: Version, path: str) -> bytes:
        """The bytes of one of a version's files, hashed again. IntegrityError names a file that changed."""
        return self._store.read_file(version.digest, path)

    def put_object(self, data: bytes) -> str:
        """Keep some bytes (a router's weights); their digest. What no lock or report names, `gc` takes in a
        day.
        """
        return self._store.objects.put_bytes(data)

    def get_object(self, digest: str) -> bytes:
        """The bytes with a digest, hashed again. IntegrityError if they are gone or changed."""
        return self._store.objects.read(digest)

    # Variants

    def lock(
        self,
        name: str,
        recipe: str | Path | Mapping[str, Any] | Recipe,
        *,
        routers: Mapping[str, str] | None = None,
        base: BaseFingerprint | str | Path | None = None,
        why: str = "",
        provenance: Mapping[str, Any] | None = None,
        owner: str | None = None,
    ) -> Lock:
        """Pin every reference of `recipe` (path, YAML text or dict) and keep it as the next lock of variant
        `name`.

        `routers` maps a route's path in the tree ("" for the root, "stack.0") to the digest of its
        weights. The same recipe, tree and guard as the newest lock give that lock. Raises InputError,
        ReferenceNotFound, BaseMismatch.
        """
        who = whoami()
        return locking.lock(
            self._store,
            name,
            recipe,
            routers=routers,
            base=base,
            why=why,
            provenance=provenance,
            who=who,
            owner=owner or who,
        )

    def pin(self, recipe: str | Path | Mapping[str, Any] | Recipe, *, routers: Mapping[str, str]) -> Lock:
        """What `lock` would make of `recipe`, without a name or number, not kept: to try a recipe out."""
        return locking.transient(self._store, Recipe.of(recipe), routers, whoami())

    def dependents(self, ref: str | Version | Lock) -> list[Dependent]:
        """Live variant aliases whose current lock contains what `ref` means, at any depth of nesting."""
        return locking.dependents(self._store, self.resolve(ref) if isinstance(ref, str) else ref)

    def drifted(self, name: str | None = None, *, using: Sequence[str] | None = None) -> list[Drift]:
        """Live variant aliases whose recipe would resolve to something else now: of the variant `name`, of
        those that contain something of the names `using`, or all.
        """
        if name is not None:
            lookup.need_name(self._store, name, "variant")
        return locking.drifted(self._store, name, using=using)

    # What is live

    def promote(
        self,
        ref: str,
        alias: str,
        *,
        why: str = "",
        expect: str | None = None,
        force: bool = False,
        who: str | None = None,
    ) -> Event:
        """Point `alias` of the reference's name to it: guard, compare-and-swap and journal row in one
        transaction.

        `expect` is what it must point to now ("v1", "name@v1", a digest, "none"), else Conflict. A guard
        that is not met is journaled as a refusal, then GuardRefused; `force` passes it, needs `why` and is
        journaled as such. Promoting what is live already changes nothing and returns the row that made it
        so.
        """
        judge = type(self).judge
        return aliases.promote(
            self._store, ref, alias, why=why, expect=expect, force=force, who=who or whoami(), judge=judge
        )

    def rollback(
        self,
        name_alias: str,
        *,
        why: str,
        to: str | None = None,
        to_time: str | datetime | None = None,
        dependents: bool = False,
        otherwise: str | None = None,
        dry_run: bool = False,
        who: str | None = None,
    ) -> list[Event]:
        """Pop the alias's stack to the newest earlier target without anything yanked in it (twice goes back
        two), or to the entry `to` ("v2"), or to what was live at `to_time`.

        `dependents` moves, in the same transaction, every live variant alias that contains what is left
        behind to its latest earlier lock free of it. An alias that has none stops the whole of it and is
        named (Conflict), unless `otherwise` is "disable" or, for variants, "base". `dry_run` returns the
        rows and writes none. Never guarded.
        """
        return aliases.rollback(
            self._store,
            name_alias,
            why=why,
            to=to,
            to_time=to_time,
            dependents=dependents,
            otherwise=otherwise,
            dry_run=dry_run,
            who=who or whoami(),
        )

    def yank(
        self,
        ref: str,
        *,
        why: str,
        rollback_dependents: bool = False,
        otherwise: str | None = None,
        dry_run: bool = False,
        who: str | None = None,
    ) -> list[Event]:
        """Mark a version or lock as not to be used again; its own aliases that point to it are rolled back
        with it.

        Existing locks keep it and still resolve; no new lock or promotion may use it.
        `rollback_dependents`, `otherwise` and `dry_run` as in `rollback`. Yanking what is yanked does
        nothing. Never guarded.
        """
        return aliases.yank(
            self._store,
            ref,
            why=why,
            rollback_dependents=rollback_dependents,
            otherwise=otherwise,
            dry_run=dry_run,
            who=who or whoami(),
        )

    def retire(
        self, refs: str | Sequence[str], *, why: str, dry_run: bool = False, who: str | None = None
    ) -> list[Event]:
        """Give up exact versions or locks that never were live: `gc` may take their bytes, nothing new may
        use them.

        All or nothing. Raises Conflict that names an alias that one was live under, or a lock that needs
        one and is not retired with it. Retiring what is retired does nothing.
        """
        named = [refs] if isinstance(refs, str) else list(refs)
        from inlay.registry import removing

        return removing.retire(self._store, named, why=why, dry_run=dry_run, who=who or whoami())

    def purge(
        self, refs: str | Sequence[str], *, why: str, dry_run: bool = False, who: str | None = None
    ) -> list[Event]:
        """Erase the bytes of exact versions or locks because the law says they must go: weights, manifest,
        training record, reports, and every folder made from them. A journaled tombstone stays, and the same
        bytes are refused for good.

        All or nothing. Raises Conflict where one is live now, or where a version that is not purged with it
        has the same weights. Other stores, bundles, hubs and backups are not reached.
        """
        named = [refs] if isinstance(refs, str) else list(refs)
        from inlay.registry import removing

        return removing.purge(self._store, named, why=why, dry_run=dry_run, who=who or whoami())

    def set_guard(
        self,
        name_alias: str,
        guard: Guard | Mapping[str, Any] | None,
        *,
        why: str = "",
        who: str | None = None,
    ) -> Event:
        """Set, or with None remove, the guard of `name@alias`; its suites are pinned by digest as they are
        now.
        """
        return aliases.set_guard(self._store, name_alias, guard, why=why, who=who or whoami())

    def guard(self, name: str, alias: str) -> Guard | None:
        """The guard of an alias, None if it has none."""
        return aliases.guard_of(self._store, name, alias)

    def verdict(self, ref: str, alias: str) -> Verdict | None:
        """What the judge says now about pointing `alias` to what `ref` means; None where nothing guards it.

        Nothing is written: `promote` is what journals a verdict.
        """
        return aliases.verdict(self._store, ref, alias, judge=type(self).judge)

    def journal(
        self, name: str | None = None, *, limit: int | None = None, before: int | None = None
    ) -> list[Event]:
        """The journal's rows about `name`, or all, newest first: at most `limit`, older than row `before`.

        `Event.sentence()` reads as English.
        """
        if name is not None:
            lookup.need_name(self._store, name)
        return journal.events(self._store.db, name, limit=limit, before=before)

    def journal_head(self) -> tuple[int, str]:
        """(seq, hash) of the newest row, to be kept elsewhere: `fsck(head)` then finds a cut or rewritten
        chain.
        """
        return journal.head(self._store.db)

    def changed(self, since: tuple[int, str] | None = None) -> tuple[tuple[int, str], frozenset[str] | None]:
        """The journal's head, and the names that it got rows about since it was `since`: one cheap look, for
        whoever stays beside a store that others write to.

        None in the place of names: any of them may mean something else, because nobody says since when, or
        another file lies at the store's path by now (it is read from then on), or its journal went another
        way. StoreBusy where no file does.
        """
        if self._store.db.follow() or since is None:
            return journal.head(self._store.db), None
        return journal.names_since(self._store.db, since)

    # Who may ask a server

    def add_key(
        self,
        tenant: str,
        *,
        name: str | None = None,
        allow: Sequence[str] = ("*",),
        rate: int | None = None,
        concurrent: int | None = None,
        admin: bool = False,
        who: str | None = None,
    ) -> tuple[ApiKey, str]:
        """Make an API key of `tenant`; the key, and its secret, which is never to be had again.

        `allow`: "*" for all, names (all their references), exact references, "base"; what is not in the store
        yet may be named (see `absent`). `rate`: requests a minute; `concurrent`: at once. `admin` keys may
        use a server's admin endpoints. Raises InputError.
        """
        return keys.add(
            self._store,
            tenant,
            name=name,
            allow=allow,
            rate=rate,
            concurrent=concurrent,
            admin=admin,
            who=who or whoami(),
        )

    def keys(self) -> list[ApiKey]:
        """Every key that was made, revoked ones too, the oldest first."""
        return keys.listed(self._store)

    def keys_head(self) -> str:
        """Another text once a key was made or revoked since: one cheap look, for whoever stays beside a store
        that others write to. Where another file lies at its path by now, that one is read from then on;
        StoreBusy where none does.
        """
        self._store.db.follow()
        return keys.head(self._store)

    def key_of(self, secret: str) -> ApiKey | None:
        """The key that lets in with this secret; None for one that is unknown, revoked or damaged."""
        return keys.by_digest(self._store, digest_of(secret))

    def revoke_key(self, identity: str, why: str, *, who: str | None = None) -> ApiKey:
        """Let nobody in with this key any more; servers hear of it within a second. For good: revoking again
        changes nothing. Raises ReferenceNotFound, InputError.
        """
        return keys.revoke(self._store, identity, why=why, who=who or whoami())

    def absent(self, key: ApiKey) -> list[str]:
        """What a key's allow-list names that is not in the store, or not yet."""
        return keys.absent(self._store, key)

    # What it scored

    def put_suite(
        self, name: str, digest: str, items_jsonl: bytes, *, metric: str, skills: Mapping[str, Any]
    ) -> SuiteRow:
        """Keep a suite's items. Two contents under one name: the newest wins by name, both are found by
        digest.
        """
        return evidence.put_suite(self._store, name, digest, items_jsonl, metric=metric, skills=skills)

    def suite(self, name_or_digest: str) -> SuiteRow:
        """A stored suite; its items are `get_object(row.items)`. Raises ReferenceNotFound."""
        return evidence.suite(self._store, name_or_digest)

    def suites(self) -> list[SuiteRow]:
        """The newest suite of each name, in alphabetical order."""
        return evidence.suites(self._store)

    def put_eval(self, record: EvalRecord) -> EvalRecord:
        """Keep a score for good. The same key with the same outcomes again changes nothing and returns what
        is kept; with other outcomes it raises IntegrityError that names both scores.
        """
        return evidence.put_eval(self._store, record)

    def evals(
        self,
        subject: str | None = None,
        suite: str | None = None,
        *,
        base_weights: str | None = None,
        protocol: str | None = None,
        limit: int | None = None,
        before: int | None = None,
    ) -> list[EvalRecord]:
        """Scores, newest first. `subject` is a reference, a digest or "base"; `suite` a name or a digest;
        at most `limit`, older than the one whose `id` is `before`.
        """
        return evidence.evals(
            self._store,
            subject,
            suite,
            base_weights=base_weights,
            protocol=protocol,
            limit=limit,
            before=before,
        )

    def put_report(self, subject: str, kind: str, report: Mapping[str, Any]) -> str:
        """Keep a report ("forgetting") about a subject as JSON; the digest of the object."""
        return evidence.put_report(self._store, subject, kind, report)

    def reports(
        self, subject: str, kind: str | None = None, *, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """The reports about a subject, newest first, verified."""
        return evidence.reports(self._store, subject, kind, limit)

    # Upkeep

    def fsck(self, head: tuple[int, str] | None = None) -> list[str]:
        """What is wrong with the store, one sentence each; empty if nothing is. Reads every byte."""
        from inlay.registry import upkeep

        return upkeep.fsck(self._store, head)

    def repair(self, bundle: str | Path | None = None) -> list[str]:
        """Put back triggers that are gone and, from a bundle, objects that are missing or changed; a sentence
        for each. Rows are never repaired: a store whose rows `fsck` finds changed is restored by unbundling
        a complete bundle into a new one.
        """
        from inlay.registry import unbundling

        return unbundling.repair(self._store, bundle)

    def bundle(self, path: str | Path, names: Sequence[str] | None = None) -> Bundled:
        """Write `names` (all, if None) into the file `path`, with every name that their locks contain
        something of: numbers, bytes, lineage, scores, reports, guards, journal. There whole or not at all.

        Raises InputError if the file exists, ReferenceNotFound, IntegrityError for an object that is not
        sound.
        """
        from inlay.registry import bundling

        return bundling.bundle(self._store, path, names)

    def unbundle(
        self,
        path: str | Path,
        *,
        dry_run: bool = False,
        say: Callable[[str, int, int], None] | None = None,
    ) -> Unbundled:
        """Take a bundle over, all or nothing, after verifying everything in it. Doing it again does nothing.

        Raises InputError where the bundle is not sound, Conflict where a name went another way here.
        `dry_run` verifies rows and digests and stores nothing.
        """
        from inlay.registry import unbundling

        return unbundling.unbundle(self._store, path, dry_run=dry_run, say=say)

    def gc(self, *, dry_run: bool = False, grace: float = GRACE_SECONDS) -> list[Path]:
        """Remove what nothing refers to and is older than `grace` seconds; the paths that went, or would."""
        from inlay.registry import upkeep

        return upkeep.gc(self._store, dry_run=dry_run, grace=grace)

    def bases(self) -> list[BaseRef]:
        """Every base that a version or a lock is for, as it was found, the one seen last first."""
        return lookup.bases(self._store)

    def made_for(self, weights: str) -> tuple[list[Version], list[Lock]]:
        """All versions and all locks for the base with these weights (its digest), by name and number."""
        return lookup.made_for(self._store, weights)

    def base_tensors(self, weights: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The tensors of a base that some version is for: {name: (dtype, shape)}. InputError if none is."""
        row = self._store.db.row("SELECT tensors FROM bases WHERE weights = ? LIMIT 1", [weights])
        if row is None:
            raise InputError(f"no version in the registry is for the base {weights[:80]}")
        tensors = json.loads(self._store.objects.read(row["tensors"], what="tensor list"))
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}
