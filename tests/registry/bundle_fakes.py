"""Bundles taken apart, changed, and sealed again, so that only what a row means can give it away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry_fakes import make_adapter, put_suite, score

from inlay.registry import Registry, digest_of
from inlay.registry.journal import GENESIS, row_hash
from inlay.registry.locking import digest_of_lock

HEADER = "bundle.json"
THINGS = {"add": "versions", "lock": "locks"}


def fill(registry: Registry, folder: Path, base: Path) -> None:
    """Something of everything that a bundle can carry, on top of legal@v1 … v3 and style@v1, v2."""
    run = {"dataset": {"name": "letters", "rows": 2}, "seed": 1}
    registry.add("tone", make_adapter(folder / "tone1", seed=21), base=base, run=run, lineage={"from": "x"})
    for number in (1, 2, 3):
        registry.promote(f"legal@v{number}", "prod", why="better\x1b[2J\nthan before'; DROP TABLE names; --")
    registry.promote("legal@v1", "staging")
    suite = put_suite(registry, "general")
    score(registry, "legal@v1", "general", (True, False, True, True))
    score(registry, "base", "general", (True,) * 4)
    registry.lock("acme", {"stack": ["legal@v2", {"use": "style@v1", "weight": 0.5}]}, provenance={"by": "x"})
    registry.promote("acme@v1", "prod")
    guard = {"forget": 0.05, "suites": {"general": ["general"]}, "pinned": {"general": suite}}
    registry.lock(
        "acme",
        {
            "compose": {"merge": ["legal@v3", "style@v1"], "method": "ties", "params": {"density": 0.4}},
            "guard": guard,
        },
    )
    registry.promote("acme@v2", "prod", force=True, why="nobody measured")
    router = registry.put_object(b"a router's weights")
    recipe = {"route": {"by": "probe", "experts": ["acme@v1", {"use": "style@v2", "weight": 2.0}]}}
    registry.lock("big", recipe, routers={"": router})
    registry.promote("big@v1", "prod")
    registry.lock("plain", "tone@v1")
    registry.set_guard("legal@prod", guard, why="careful")
    registry.put_report("legal@v1", "forgetting", {"lost": 0.01})
    registry.describe("legal", owner="bob", description='says "origin"', tag=["gdpr", "stage=pilot"])
    registry.describe("legal@v2", tag=["wobbly"], why="seen in review")
    registry.yank("legal@v3", why="hallucinates", rollback_dependents=True)
    registry.yank("style@v2", why="rude", rollback_dependents=True, otherwise="base")
    registry.rollback("legal@prod", why="again")


def let_go(registry: Registry, folder: Path, base: Path) -> None:
    """A version that was retired and one that was purged, each with what belonged to it."""
    registry.add("tone", make_adapter(folder / "tone2", seed=22), base=base)
    registry.add("tone", make_adapter(folder / "tone3", seed=23), base=base, run={"seed": 3})
    registry.put_report("tone@v3", "forgetting", {"lost": 0.5})
    registry.promote("tone@v3", "trial")
    registry.promote("tone@v1", "trial")
    registry.retire("tone@v2", why="never shipped")
    registry.purge("tone@v3", why="request 12")
    registry.gc(grace=0)


class Forged:
    """The contents of a bundle, to be changed and written again."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.objects: dict[str, bytes] = {}
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                data = file.read(name)
                if name.startswith("rows/"):
                    lines = data.decode().split("\n")[:-1]
                    self.rows[name[5:-6]] = [json.loads(line) for line in lines]
                elif name.startswith("objects/"):
                    self.objects["sha256:" + name[8:]] = data
                else:
                    self.header = json.loads(data)

    def thing(self, ref: str) -> dict[str, Any]:
        """The row of a version or lock."""
        name, _, number = ref.rpartition("@v")
        rows = [*self.rows["versions"], *self.rows["locks"]]
        return next(row for row in rows if (row["name"], row["number"]) == (name, int(number)))

    def events(self, verb: str, name: str | None = None) -> list[dict[str, Any]]:
        return [r for r in self.rows["journal"] if r["verb"] == verb and name in (None, r["name"])]

    def put(self, data: bytes) -> str:
        """Add an object; its digest."""
        self.objects[digest_of(data)] = data
        return digest_of(data)

    def replace_file(self, ref: str, path: str, data: bytes) -> None:
        """Give a version other bytes for one of its files, and a manifest that says so."""
        version = self.thing(ref)
        digest = self.put(data)
        others = [file for file in version["files"] if file[0] != path]
        version["files"] = sorted([*others, [path, len(data), digest]])
        version["size"] = sum(size for _, size, _ in version["files"])
        self.manifest(ref)

    def manifest(self, ref: str) -> None:
        version = self.thing(ref)
        listed = [{"path": p, "sha256": d, "size": s} for p, s, d in version["files"]]
        self.rename(version["digest"], self.put(written(listed).encode()))
        self.prune()

    def rename(self, old: str, new: str) -> None:
        """One digest for another, wherever a row has it."""
        self.rows = json.loads(written(self.rows).replace(old, new))

    def prune(self) -> None:
        """Leave out the objects that nothing in the rows names."""
        text = written(self.rows)
        self.objects = {digest: data for digest, data in self.objects.items() if digest in text}

    def seal(self) -> Forged:
        """Compute again all that anybody could: digests of locks, sealed records, keys, the chain."""
        for number in range(len(self.rows["locks"])):
            with contextlib.suppress(Exception):
                row = self.rows["locks"][number]
                digest = digest_of_lock(row["base"][0], json.loads(row["tree"]))
                if digest != row["digest"]:
                    self.rename(row["digest"], digest)
        for row in self.rows["evals"]:
            with contextlib.suppress(Exception):
                row["protocol"] = digest_of(row["protocol_detail"])
            keyed = ("subject", "base_weights", "base_prompt", "suite", "metric", "protocol")
            with contextlib.suppress(Exception):
                row["key"] = digest_of(written([row[column] for column in keyed]))
        for row in self.rows["journal"]:
            for side in ("from", "to"):
                with contextlib.suppress(Exception):
                    if row[f"{side}_number"] is not None:
                        row[f"{side}_digest"] = self.thing(row[f"{side}_ref"])["digest"]
            with contextlib.suppress(Exception):
                detail = json.loads(row["detail"])
                if "record" in detail and row["verb"] in THINGS:
                    detail["record"] = sealed(self.thing(row["to_ref"]))
                    row["detail"] = written(detail)
        self.chain()
        return self

    def chain(self) -> None:
        previous = GENESIS
        for row in self.rows["journal"]:
            with contextlib.suppress(Exception):
                row["previous"] = previous
                row["hash"] = row_hash(row)
                previous = row["hash"]
        with contextlib.suppress(Exception):
            self.header["head"] = [self.rows["journal"][-1]["seq"], previous]
            self.header["names"] = sorted(row["name"] for row in self.rows["names"])

    def write(self, path: Path, *, rows: Mapping[str, bytes] | None = None) -> Path:
        """Write it; `rows` gives the bytes of some tables."""
        tables = {
            table: "".join(written(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
            for table, rows in self.rows.items()
        }
        tables.update(rows or {})
        members = {f"rows/{table}.jsonl": data for table, data in tables.items()}
        self.header["members"] = {name: [digest_of(data), len(data)] for name, data in members.items()}
        members |= {f"objects/{digest[7:]}": data for digest, data in self.objects.items()}
        members[HEADER] = written(self.header).encode("utf-8", "surrogatepass")
        return stored(path, members)


def written(value: Any) -> str:
    """Canonical JSON, of what canonical JSON refuses as well."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sealed(row: Mapping[str, Any]) -> str:
    weights, prompt, source = row["base"]
    plain = {k: v for k, v in row.items() if k not in ("base", "files") and v is not None}
    return digest_of(
        written({**plain, "base_weights": weights, "base_prompt": prompt, "base_source": source})
    )


def stored(path: Path, members: Mapping[str, bytes]) -> Path:
    """A zip of these members, none compressed."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            file.writestr(info, data)
    return path


def rows_of(registry: Registry) -> str:
    """A digest of every row of the store: equal before and after means that none changed."""
    state = hashlib.sha256()
    for line in registry._store.db.connection.iterdump():
        state.update(line.encode())
    return state.hexdigest()
