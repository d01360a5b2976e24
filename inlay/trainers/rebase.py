"""A recorded run again on another base, for the day when a base is replaced.

What the record keeps is used as it was: the method, the settings, the suites, the data by its digest. Weights
are not carried over; two bases have nothing in common that a delta could stand on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.evals.ledger import Say
from inlay.evals.suites import Suite
from inlay.registry import Registry, Version
from inlay.registry.fingerprint import BaseFingerprint
from inlay.trainers.held_out import held_apart
from inlay.trainers.kept_data import differing, kept
from inlay.trainers.reading import Data, read
from inlay.trainers.rebase_report import KIND, RebaseReport, rebase_report
from inlay.trainers.run import TrainResult, train
from inlay.trainers.settings import Settings, settings_for

if TYPE_CHECKING:
    from inlay.evals.inference import Base


@dataclass(frozen=True)
class Rebased:
    """The new version's run, and how it compares with the old one."""

    result: TrainResult
    report: RebaseReport

    @property
    def version(self) -> Version:
        return self.result.version


def rebase(
    ref: str | Version,
    base: str | Path | Base,
    data: str | Path | Sequence[Any] | Data | None = None,
    *,
    store: Registry | str | Path | None = None,
    name: str | None = None,
    start: str | Version | None = None,
    defaults: bool = False,
    held_out: str | Path | Sequence[Any] | Data | None = None,
    general_prompts: str | Path | Sequence[str] | None = None,
    orthogonal_to: Sequence[str] = (),
    imported: str | Path | Sequence[str | Mapping[str, Any]] | None = None,
    few_shot: bool = True,
    keep_data: bool = False,
    why: str = "",
    device: str = "auto",
    fresh: bool = False,
    say: Say | None = None,
    **settings: Any,
) -> Rebased:
    """Train the run of `ref` again on `base` and compare the two; the new version is the next of its name.

    `data`: what it was trained on, by digest; None where the store keeps the rows. Settings are the recorded
    ones; with `defaults` only those that were asked for by name, the rest being what the new base recommends;
    `settings` change single ones. All else is as for `inlay.train`. `start`: for a version that was trained
    on from another, that other one trained again on the new base. Raises InputError for a version without a
    record, for the base that it has already, and for other data, naming both digests and how many rows
    differ.
    """
    store = store if isinstance(store, Registry) else Registry.open(store)
    old, run = _recorded(ref, store)
    fingerprint = BaseFingerprint.of(base) if isinstance(base, str | Path) else base.fingerprint
    if fingerprint.weights == old.base.weights:
        raise InputError(
            f"a run is trained again on another base, and {old.ref} is for {fingerprint.name} already",
            fix="name the new base with --base",
        )
    _refuse_another_start(old, run, start, store)
    if run.get("orthogonal_to") and not orthogonal_to:
        raise InputError(
            f"{old.ref} began orthogonal to {len(run['orthogonal_to'])} adapters of its own base",
            fix="train those again first, and name them with --orthogonal-to",
        )
    asked = asked_of(run)
    recorded = Settings.from_dict(run["settings"]).to_dict()
    given = {key: value for key, value in settings.items() if value is not None}
    wanted = {
        **{key: value for key, value in recorded.items() if not defaults or key in asked or key == "method"},
        **given,
    }
    chosen = settings_for(fingerprint.path, **wanted)
    rows = _rows(old, run, data, chosen, held_out, store)
    generals, targets = (
        [Suite.from_store(store, suite["digest"]) for suite in run["declared"][role]]
        for role in ("general", "target")
    )
    result = train(
        base,
        rows,
        name=name or old.name,
        start=start,
        store=store,
        general=generals,
        target=targets,
        held_out=held_out,
        general_prompts=general_prompts,
        orthogonal_to=orthogonal_to,
        minimum=run["declared"].get("minimum"),
        imported=imported,
        few_shot=few_shot,
        why=why,
        device=device,
        fresh=fresh,
        keep_data=keep_data,
        rebased={
            "ref": old.ref,
            "digest": old.digest,
            "base": {"name": old.base.name, "weights": old.base.weights},
            "asked": sorted({*asked, *given}),
            "defaults": defaults,
        },
        say=say,
        **wanted,
    )
    report = rebase_report(store, old, result.version, notes=_notes(run, result.run))
    store.put_report(result.version.digest, KIND, report.to_dict())
    return Rebased(result, report)


def asked_of(run: Mapping[str, Any]) -> list[str]:
    """The settings that were asked for by name, also where a run was trained again; none in records from
    before they were kept."""
    return list((run.get("rebased") or run).get("asked") or ())


def _recorded(ref: str | Version, store: Registry) -> tuple[Version, Mapping[str, Any]]:
    old = store.resolve(ref) if isinstance(ref, str) else ref
    if not isinstance(old, Version):
        raise InputError(
            f"a version's run is trained again, and {old.ref} is a variant's lock",
            fix="train its members again, then lock the variant: "
            + ", ".join(member.ref for member in old.members),
        )
    if old.state != "active":
        raise InputError(f"{old.ref} was {old.state}, it is not trained again", fix="name another version")
    run = store.run_of(old)
    if run is None or "settings" not in run:
        raise InputError(
            f"{old.ref} has no training record, it was registered from outside",
            fix="train it by hand on the new base",
        )
    return old, run


def _refuse_another_start(
    old: Version, run: Mapping[str, Any], start: str | Version | None, store: Registry
) -> None:
    """A version that was trained on from another begins at that one's counterpart on the new base."""
    parent = run.get("parent")
    if parent is None:
        if start is not None:
            raise InputError(f"{old.ref} was not trained on from a version", fix="leave --from away")
        return
    if start is None:
        raise InputError(
            f"{old.ref} was trained on from {parent['ref']}, which the new base needs first",
            fix=f"--rebase {parent['ref']}, then --rebase {old.ref} --from the version that came of it",
        )
    begins = store.resolve(start) if isinstance(start, str) else start
    again = (store.run_of(begins) or {}).get("rebased") if isinstance(begins, Version) else None
    if again is None or again["digest"] != parent["digest"]:
        raise InputError(
            f"{old.ref} begins where {parent['ref']} trained again ends, and {begins.ref} is not that",
            fix=f"--rebase {parent['ref']} first",
        )


def _rows(
    old: Version,
    run: Mapping[str, Any],
    data: str | Path | Sequence[Any] | Data | None,
    settings: Settings,
    held_out: Any,
    store: Registry,
) -> Data:
    """The data of the run; InputError for any other."""
    before, manifest = kept(store, old), run["dataset"]
    told = f"{manifest['name']}, {manifest['rows']} rows, {manifest['digest'][:19]}…"
    if data is None:
        if before is None or before.rows is None:
            raise InputError(
                f"the registry keeps no rows of what {old.ref} was trained on, only their digests",
                fix=f"give the file: {told}",
            )
        data = list(before.rows)
    found = read(data, settings.method, name=manifest["name"])
    trained, held = held_apart(found, settings, held_out)
    if trained.digest != manifest["digest"]:
        raise InputError(
            f"the data must be what {old.ref} was trained on, {manifest['digest'][:19]}…, and is "
            f"{trained.digest[:19]}…: {_difference(before.digests if before else None, trained)}",
            fix=f"give the file as it was: {told}",
        )
    kept_apart = (run.get("held_out") or {}).get("digest")
    if kept_apart is not None and (held is None or held.digest != kept_apart):
        raise InputError(
            f"{old.ref} was measured on other held-out rows ({kept_apart[:19]}…)",
            fix="name their file with --held-out",
        )
    return found


def _difference(digests: tuple[str, ...] | None, now: Data) -> str:
    if digests is None:
        return (
            f"{len(now)} rows, and how many differ is not known, since that run kept no digests of its rows"
        )
    missing, new = differing(digests, tuple(now.row_digests))
    if not missing and not new:
        return "the same rows in another order"
    return f"{missing} of {len(digests)} rows are missing, {new} are new"


def _notes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = was.get("general_prompts"), now.get("general_prompts")
    if before == after:
        return []
    return [f"General prompts: {before} then, {after} now."]
