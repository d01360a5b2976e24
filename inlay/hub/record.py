"""inlay.json beside pushed files: where they come from, so that a pull can say it and verify it.

It holds numbers and digests; no training rows, no prompts, no answers, no paths. Read back, it is text from
outside like any other: a claim, of which only what the bytes bear out is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.registry import BaseRef, EvalRecord, Lock, Version, canonical, digest_of, parse_reference
from inlay.registry.canonical import digest_of_file, is_digest
from inlay.registry.hub import is_repo_id

if TYPE_CHECKING:
    from inlay.evals import ForgettingReport

FILE = "inlay.json"
ORIGINAL_CARD = "ORIGINAL_CARD.md"
"""Under this name goes the README.md that a version came with; README.md itself is the card we write."""
MAX_BYTES = 4 << 20
SCHEMA = 1
_MOST_FILES = 64

Manifest = list[dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """What an inlay.json says: what was pushed, which files it had, which base it was for."""

    ref: str
    digest: str
    variant: bool
    manifest: tuple[Mapping[str, Any], ...]
    base: Mapping[str, str]


def manifest_of(folder: Path) -> Manifest:
    """The files in `folder` as the registry lists them: path, sha256, size; sorted by path."""
    files = []
    for path in sorted(folder.iterdir()):
        digest, size = digest_of_file(path)
        files.append({"path": path.name, "sha256": digest, "size": size})
    return files


def write(
    target: Version | Lock,
    manifest: Manifest,
    evals: Sequence[EvalRecord],
    report: ForgettingReport | None,
) -> str:
    """The text of inlay.json. The same input gives the same text."""
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "variant" if isinstance(target, Lock) else "version",
        "ref": target.ref,
        "digest": target.digest,
        "created": target.created,
        "author": target.author,
        "why": target.why,
        "manifest": manifest,
        "base": base_dict(target.base),
        "evals": [_eval(record) for record in evals],
        "forgetting": _forgetting(report) if report else None,
    }
    if isinstance(target, Lock):
        record["members"] = [
            {"ref": m.ref, "digest": m.digest, "weight": m.weight, "path": m.path} for m in target.members
        ]
    else:
        record |= {
            "licence": target.licence,
            "lineage": dict(target.lineage) if target.lineage else None,
            "trained_on": dict(target.trained_on) if target.trained_on else None,
        }
    return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def base_dict(base: BaseRef) -> dict[str, Any]:
    """A base without where it lies on this machine; its hub id where it came from there."""
    found = {"name": base.name, "weights": base.weights, "prompt": base.prompt}
    if "/" in base.source and is_repo_id(base.source):
        found |= {"repo": base.source, "revision": base.revision or "main"}
    return found


def read(path: Path) -> Claim | None:
    """The claim in an inlay.json, or None where it is none that this version understands."""
    if path.stat().st_size > MAX_BYTES:
        return None
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            return None
        ref, digest, files, base = (found[key] for key in ("ref", "digest", "manifest", "base"))
        parse_reference(ref)
        if not (isinstance(digest, str) and is_digest(digest)) or not 0 < len(files) <= _MOST_FILES:
            return None
        manifest = tuple(
            {"path": str(f["path"]), "sha256": str(f["sha256"]), "size": int(f["size"])} for f in files
        )
        pair = {key: base[key] for key in ("weights", "prompt")}
        if not all(isinstance(value, str) and is_digest(value) for value in pair.values()):
            return None
    except (InputError, ValueError, TypeError, KeyError, RecursionError):
        return None
    variant = found.get("kind") != "version"
    if not variant and digest_of(canonical(list(manifest))) != digest:
        return None
    return Claim(ref, digest, variant, manifest, pair)


def _eval(record: EvalRecord) -> dict[str, Any]:
    return {
        "suite": record.suite_name,
        "suite_digest": record.suite,
        "metric": record.metric,
        "protocol": record.protocol,
        "score": record.score,
        "n": record.n,
        "low": record.low,
        "high": record.high,
    }


def _forgetting(report: ForgettingReport) -> dict[str, Any]:
    """The report's counts; its flips are prompts and answers, and stay at home."""
    full = report.to_dict()
    kept = {key: full[key] for key in ("created", "held_out", "lost", "protected", "skills", "suites")}
    for row in (kept["held_out"], kept["protected"], *(skill["counts"] for skill in kept["skills"])):
        row.pop("clusters", None)  # counts by template are for intervals, and no page shows them
    return kept
