"""Registering an adapter: look at everything, store the objects, then the row. Killed in between, what was
stored is an unreferenced object that `gc` removes; there is never a row without its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inlay.errors import BaseMismatch, InputError
from inlay.registry import describing, ingest, journal, lookup, removing
from inlay.registry.canonical import canonical, digest_of, digest_of_file, now
from inlay.registry.fingerprint import BaseFingerprint
from inlay.registry.names import check_name
from inlay.registry.records import BaseRef, Version
from inlay.registry.store import Store


def add(
    store: Store,
    name: str,
    folder: str | Path,
    *,
    base: BaseFingerprint | str | Path,
    why: str,
    run: Mapping[str, Any] | None,
    lineage: Mapping[str, Any] | None,
    owner: str,
    who: str,
    allow_base_mismatch: bool,
    accept_prompt_change: bool,
    tag: Sequence[str] = (),
    description: str | None = None,
) -> Version:
    """See `Registry.add`."""
    check_name(name)
    describing.check(tag, description)
    _refuse_other_kind(store, name)
    run_text = canonical(run) if run is not None else None
    lineage_text = canonical(lineage) if lineage is not None else None
    fingerprint = BaseFingerprint.of(base)
    checked = ingest.check(folder, fingerprint)
    trained_on = _trained_on(run)
    mismatch = _compare(trained_on, fingerprint, allow_base_mismatch, accept_prompt_change)

    if removing.erased(store):  # only then is it worth hashing the weights before they are stored
        said = [digest_of(run_text)] if run_text is not None else []
        removing.refuse_erased(store, [digest_of_file(checked.files[ingest.WEIGHTS])[0], *said])
    stored = {file: store.objects.put_file(path) for file, path in checked.files.items()}
    checked.refuse_changed()
    manifest = [{"path": f, "sha256": d, "size": s} for f, (d, s) in sorted(stored.items())]
    texts = [canonical(manifest).encode(), _tensor_map(fingerprint)]
    if run_text is not None:
        texts.append(run_text.encode())
    digest = store.objects.put_bytes(texts[0])
    existing = _existing(store, name, digest, fingerprint)
    if existing is not None:
        return existing
    kept = [digest, *(store.objects.put_bytes(text) for text in texts[1:])]

    with store.db.transaction():
        existing = _existing(store, name, digest, fingerprint)
        if existing is not None:
            return existing
        removing.refuse_erased(store, [stored[ingest.WEIGHTS][0], *kept])
        _keep(store, checked, stored, dict(zip(kept, texts, strict=True)))
        make_name(store, name, "adapter", owner)
        number = lookup.latest(store, name) + 1
        row = {
            "name": name,
            "number": number,
            "digest": digest,
            "base": base_id(store, fingerprint, kept[1]),
            "kind": checked.kind,
            "rank": checked.rank,
            "targets": canonical(list(checked.targets)),
            "parameters": checked.parameters,
            "exactness": checked.exactness,
            "size": sum(size for _, size in stored.values()),
            "trained_on": canonical(trained_on) if trained_on else None,
            "mismatch": int(mismatch),
            "run": kept[2] if run_text is not None else None,
            "lineage": lineage_text,
            "notes": canonical(list(checked.notes)),
            "author": who,
            "why": why,
            "created": now(),
            "licence": checked.licence,
            "card": canonical(dict(checked.card)) if checked.card else None,
        }
        version = store.db.insert("versions", row)
        for file, (file_digest, size) in stored.items():
            store.db.insert(
                "version_files", {"version": version, "path": file, "size": size, "digest": file_digest}
            )
        target = journal.Target(number, f"{name}@v{number}", digest)
        detail: dict[str, Any] = {
            "base": fingerprint.weights,
            "record": journal.seal(store.db, "versions", version),
        }
        detail |= _came_from(run)
        if mismatch:
            detail["base_mismatch"] = dict(trained_on)
        journal.append(store.db, who=who, verb="add", name=name, after=target, why=why, detail=detail)
        if tag or description is not None:
            describing.describe(
                store,
                target.ref,
                owner=None,
                description=description,
                tag=tag,
                untag=(),
                why="",
                who=who,
            )
        made = lookup.by_number(store, name, number)
    assert isinstance(made, Version)
    return made


def _keep(
    store: Store, checked: ingest.Checked, stored: dict[str, tuple[str, int]], texts: dict[str, bytes]
) -> None:
    """Store again what `gc` took between the storing and this transaction, which keeps it out from now on."""
    missing = set(store.objects.missing([*(d for d, _ in stored.values()), *texts]))
    for file, path in checked.files.items():
        if stored[file][0] in missing:
            store.objects.put_file(path)
    for digest, text in texts.items():
        if digest in missing:
            store.objects.put_bytes(text)
    if missing:
        checked.refuse_changed()


def make_name(store: Store, name: str, kind: str, owner: str, *, created: str | None = None) -> None:
    """Take `name` for `kind` if it is free, inside a transaction; InputError if the other kind has it."""
    row = store.db.row("SELECT kind FROM names WHERE name = ?", [name])
    if row is None:
        store.db.insert("names", {"name": name, "kind": kind, "owner": owner, "created": created or now()})
    elif row["kind"] != kind:
        raise InputError(
            f"{name} is a name of {row['kind']}s, adapters and variants share names", fix="choose another"
        )


def base_id(store: Store, base: BaseFingerprint, tensors: str | None = None) -> int:
    """The row id of `base` as found at its source, made if it is new, inside a transaction."""
    row = store.db.row(
        "SELECT id FROM bases WHERE weights = ? AND prompt = ? AND source = ?",
        [base.weights, base.prompt, base.source],
    )
    if row is not None:
        return int(row["id"])
    return store.db.insert(
        "bases",
        {
            "weights": base.weights,
            "prompt": base.prompt,
            "name": base.name,
            "revision": base.revision,
            "architecture": base.architecture,
            "source": base.source,
            "tensors": tensors or store.objects.put_bytes(_tensor_map(base)),
            "created": now(),
        },
    )


def known_base_id(store: Store, base: BaseRef) -> int:
    """The row id of a base that some version has."""
    row = store.db.row(
        "SELECT id FROM bases WHERE weights = ? AND prompt = ? AND source = ?",
        [base.weights, base.prompt, base.source],
    )
    assert row is not None
    return int(row["id"])


def _tensor_map(base: BaseFingerprint) -> bytes:
    return canonical({name: [dtype, list(shape)] for name, (dtype, shape) in base.tensors.items()}).encode()


def _existing(store: Store, name: str, digest: str, base: BaseFingerprint) -> Version | None:
    """The version of `name` with these bytes; BaseMismatch if it was registered for another base."""
    row = store.db.row("SELECT number FROM versions WHERE name = ? AND digest = ?", [name, digest])
    if row is None:
        return None
    version = lookup.by_number(store, name, row["number"])
    assert isinstance(version, Version)
    if version.state in ("retired", "purged"):
        raise InputError(
            f"these bytes are {version.ref} already, which was {version.state}",
            fix="register them under another name" if version.state == "retired" else None,
        )
    if version.base.weights != base.weights:
        raise BaseMismatch(
            f"these bytes are {version.ref} already, for the base {version.base.name} "
            f"({version.base.weights[:15]}…), not {base.name} ({base.weights[:15]}…)",
            fix="register them under another name",
        )
    return version


def _trained_on(run: Mapping[str, Any] | None) -> dict[str, str]:
    """What the training record says it was trained on: {"weights", "prompt"}, as far as it says."""
    recorded = (run or {}).get("base") or {}
    if not isinstance(recorded, Mapping):
        raise InputError('a run\'s "base" must be {"weights": digest, "prompt": digest}')
    return {key: str(recorded[key]) for key in ("weights", "prompt") if recorded.get(key)}


def _came_from(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Which versions the training record names: the one it went on from, the one it trained again."""
    named = {key: (run or {}).get(key) for key in ("parent", "rebased")}
    return {k: str(of["ref"]) for k, of in named.items() if isinstance(of, Mapping) and "ref" in of}


def _compare(
    trained_on: dict[str, str], base: BaseFingerprint, allow_mismatch: bool, accept_prompt: bool
) -> bool:
    """Whether the base's weights are not those trained on, though allowed. BaseMismatch if not allowed."""
    weights, prompt = trained_on.get("weights"), trained_on.get("prompt")
    if prompt is not None and prompt != base.prompt and not (accept_prompt or allow_mismatch):
        raise BaseMismatch(
            f"the adapter was trained with another tokenizer or chat template ({prompt[:15]}…) than "
            f"{base.name} has now ({base.prompt[:15]}…)",
            fix="give the base it was trained on, or acknowledge with --accept-prompt-change",
        )
    if weights is None or weights == base.weights:
        return False
    if not allow_mismatch:
        raise BaseMismatch(
            f"the adapter was trained on {weights[:15]}…, {base.name} is {base.weights[:15]}…",
            fix="give the base it was trained on, or --allow-base-mismatch, which is recorded for good",
        )
    return True


def _refuse_other_kind(store: Store, name: str) -> None:
    row = store.db.row("SELECT kind FROM names WHERE name = ?", [name])
    if row is not None and row["kind"] != "adapter":
        raise InputError(f"{name} is a variant's name, an adapter needs its own", fix="choose another name")
