"""A bundle may come from anybody. Whatever is in it: an error of ours, and no row of the store changed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_fakes import Forged, rows_of, stored, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_fakes import adapter_tensors, safetensors, snapshot, with_header

from inlay.errors import InlayError, IntegrityError
from inlay.registry import Registry
from inlay.registry.canonical import timestamp

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def good(rich_made: Path) -> Path:
    return rich_made / "all.bundle"


@pytest.fixture
def target(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "target", create=True)


def refused(registry: Registry, path: Path, match: str = "") -> InlayError:
    """The error with which a bundle is refused; no row changed, and `gc` takes the objects it left."""
    before = snapshot(registry)
    for dry_run in (True, False):
        try:
            registry.unbundle(path, dry_run=dry_run)
        except InlayError as error:
            caught = error
        else:
            assert dry_run, "it was taken over"  # what is inside the objects, a dry run does not look at
    assert rows_of_snapshot(registry) == before["rows"]
    registry.gc(grace=0)
    assert snapshot(registry) == before
    assert "\x1b" not in str(caught) and "\n" not in str(caught)
    assert match in str(caught), f"{match!r} is not in {caught}"
    return caught


def rows_of_snapshot(registry: Registry) -> Any:
    return snapshot(registry)["rows"]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


# The file


def test_a_forged_bundle_that_says_nothing_new_is_a_good_one(
    good: Path, target: Registry, tmp_path: Path
) -> None:
    """So that what is refused below is refused for what was changed, not for how it was written."""
    assert members(Forged(good).seal().write(tmp_path / "same.bundle")) == members(good)
    target.unbundle(tmp_path / "same.bundle")
    assert target.fsck() == []


def test_every_member_that_is_changed_or_gone_is_missed(good: Path, target: Registry, tmp_path: Path) -> None:
    whole = members(good)
    assert len(whole) > 20
    path = tmp_path / "bad.bundle"
    for name, data in whole.items():
        for changed in (data[:-1], data + b"\n", bytes([*data[:-2], data[-2] ^ 1, data[-1]])):
            stored(path, {**whole, name: changed})
            with pytest.raises(InlayError):
                target.unbundle(path, dry_run=True)
        stored(path, {key: value for key, value in whole.items() if key != name})
        with pytest.raises(InlayError):
            target.unbundle(path, dry_run=True)
    assert target.names() == []


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/x", "objects/../x", "objects/" + "A" * 64, "objects/" + "a" * 63, "objects/x/y",
        "rows/", "rows/../../x.jsonl", "rows/evil.jsonl", "rows", "bundle.json/", "C:\\x", "objects/",
        "x\x1b[2J\n",
    ],
)  # fmt: skip
def test_a_member_that_no_bundle_has(name: str, good: Path, target: Registry, tmp_path: Path) -> None:
    refused(target, stored(tmp_path / "bad.bundle", {**members(good), name: b""}), "")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("bad.bundle", "cache")) == ["target"]


def test_a_table_that_the_header_lists_and_nobody_knows(good: Path, target: Registry, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.rows["secrets"] = [{"a": 1}]
    refused(target, forged.write(tmp_path / "bad.bundle"), "its tables are not those")


def test_objects_that_nothing_refers_to(good: Path, target: Registry, tmp_path: Path) -> None:
    forged = Forged(good)
    forged.put(b"a virus")
    refused(target, forged.write(tmp_path / "bad.bundle"), "which nothing in it refers to")


def entry(
    name: str, data: bytes, *, method: int = 0, flags: int = 0, size: int | None = None, mode: int = 0o100644
) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type, info.flag_bits, info.external_attr = method, flags, mode << 16
    info.file_size = len(data) if size is None else size
    return info


@pytest.mark.parametrize("mode", [0o120777, 0o040755, 0o010644, 0o020644])
def test_links_folders_pipes_and_devices(mode: int, good: Path, target: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bad.bundle"
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members(good).items():
            file.writestr(entry(name, data, mode=mode if name.startswith("objects/") else 0o100644), data)
    refused(target, path, "no regular file")


def test_the_same_member_twice(good: Path, target: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bad.bundle"
    shutil.copy(good, path)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("rows/journal.jsonl", b"")
    refused(target, path, "twice")


def test_compressed_members_of_ten_gigabytes_of_nothing(good: Path, target: Registry, tmp_path: Path) -> None:
    path = tmp_path / "bad.bundle"
    zeros = bytes(1 << 20)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members(good).items():
            file.writestr(name, data)
        with file.open(entry("objects/" + "0" * 64, b"", method=8), "w", force_zip64=True) as member:
            for _ in range(64):  # the rest is only claimed, below
                member.write(zeros)
    data = path.read_bytes()
    assert len(data) < 1 << 20
    refused(target, path, "is compressed")


@pytest.mark.parametrize("size", [10 << 30, 2**32 - 2, 1 << 20])
@pytest.mark.parametrize("both", [True, False])
def test_ten_gigabytes_claimed_in_a_kilobyte(size: int, both: bool, target: Registry, tmp_path: Path) -> None:
    path = stored(tmp_path / "bad.bundle", {"bundle.json": b"{}", "rows/journal.jsonl": b"x" * 500})
    data, extra = bytearray(path.read_bytes()), b""
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)  # the second member's central record
    if size < 2**32 - 1:
        struct.pack_into("<L", data, at + 24, size)
        if both:
            struct.pack_into("<L", data, at + 20, size)
    else:  # as zip64 says it
        struct.pack_into("<LL", data, at + 20, 2**32 - 1, 2**32 - 1)
        extra = struct.pack("<HHQQ", 1, 16, size, size if both else 500)
        struct.pack_into("<H", data, at + 30, len(extra))
        length = struct.unpack_from("<H", data, at + 28)[0]
        data[at + 46 + length : at + 46 + length] = extra
        end = data.index(b"PK\x05\x06")
        struct.pack_into("<L", data, end + 12, struct.unpack_from("<L", data, end + 12)[0] + len(extra))
    path.write_bytes(data)
    assert len(data) < 1024
    refused(target, path, "claims" if both else "compressed")


def test_encrypted_and_otherwise_flagged_members(good: Path, target: Registry, tmp_path: Path) -> None:
    data = good.read_bytes()
    at = data.rindex(b"PK\x01\x02")
    for flag in (0x1, 0x20, 0x40, 0x2000):
        bad = bytearray(data)
        struct.pack_into("<H", bad, at + 8, flag)
        (tmp_path / "bad.bundle").write_bytes(bad)
        if flag != 0x2000:  # masked headers; Python ignores the bit, and the bytes are as they should be
            refused(target, tmp_path / "bad.bundle")


def test_members_that_overlap(good: Path, target: Registry, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    first = data.index(b"PK\x01\x02")
    offsets = []
    at = first
    while data[at : at + 4] == b"PK\x01\x02":
        offsets.append(at)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    for other in offsets[1:4]:
        struct.pack_into("<L", data, other + 42, struct.unpack_from("<L", data, first + 42)[0])
    (tmp_path / "bad.bundle").write_bytes(data)
    refused(target, tmp_path / "bad.bundle")


def test_what_is_no_bundle_at_all(good: Path, target: Registry, tmp_path: Path) -> None:
    whole, path = good.read_bytes(), tmp_path / "bad.bundle"
    for data in (b"", b"PK\x05\x06", b"PK\x05\x06" + bytes(18), gzip.compress(whole), b"hello", bytes(4096)):
        path.write_bytes(data)
        refused(target, path, "not a sound bundle")
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(target, path, "not a sound bundle")
    with tarfile.open(path, "w") as tar:
        tar.add(good, "all.bundle")
    refused(target, path)
    for header in (b"[]", b"null", b"{", b"\xff", b'{"format":"inlay-bundle"}', b"[" * 100_000,
                   b'{"format":"inlay-bundle","version":true}', b'{"format":"inlay-bundle","version":-1}',
                   b'{"format":"inlay-bundle","version":1,"members":[]}'):  # fmt: skip
        refused(target, stored(path, {"bundle.json": header}), "not a sound bundle")
    newer = b'{"format":"inlay-bundle","members":{},"version":2}'
    assert "upgrade" in str(refused(target, stored(path, {"bundle.json": newer}), "this Inlay knows up to 1"))


def test_no_file_at_all(target: Registry, tmp_path: Path) -> None:
    refused(target, tmp_path / "nowhere", "No such file")
    refused(target, tmp_path, "")
    os.mkfifo(tmp_path / "pipe")
    refused(target, tmp_path / "pipe", "a bundle is a file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(target, tmp_path / "loop", "symbolic links")


@pytest.mark.parametrize(
    "seed",
    [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 40))],
)
def test_bytes_flipped_anywhere(seed: int, good: Path, target: Registry, tmp_path: Path) -> None:
    """Either it is refused, or the change was where nothing is (a date, a version of zip) and all is well."""
    rng = np.random.default_rng(seed)
    whole, path = good.read_bytes(), tmp_path / "bad.bundle"
    directory = whole.index(b"PK\x01\x02")
    for _ in range(25):
        data = bytearray(whole)
        low = directory if rng.random() < 0.7 else 0
        for at in rng.integers(low, len(data), size=int(rng.integers(1, 4))):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, data[at] ^ (1 << rng.integers(8))])
        path.write_bytes(data)
        try:
            done = target.unbundle(path, dry_run=True)
        except InlayError:
            continue
        assert len(done.versions) == 8
    assert target.names() == []


# The rows: sealed again, so that only what they mean can give them away

Change = Callable[[Forged], object]


def at(table: str, column: str, value: Any, row: int = 0) -> Change:
    return lambda f: f.rows[table][row].__setitem__(column, value)


def detail(verb: str, /, **more: Any) -> Change:
    def change(forged: Forged) -> None:
        row = forged.events(verb)[0]
        row["detail"] = written({**json.loads(row["detail"]), **more})

    return change


def event(of: str, /, **more: Any) -> Change:
    return lambda f: f.events(of)[0].update(more)


def tree(ref: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def edit(forged: Forged) -> None:
        row = forged.thing(ref)
        value = json.loads(row["tree"])
        change(value)
        row["tree"] = written(value)

    return edit


def config(**more: Any) -> Change:
    def change(forged: Forged) -> None:
        digest = next(d for p, _, d in forged.thing("legal@v1")["files"] if p == CONFIG)
        settings = json.loads(forged.objects[digest])
        forged.replace_file("legal@v1", CONFIG, json.dumps({**settings, **more}).encode())

    return change


def weights(data: bytes) -> Change:
    return lambda f: f.replace_file("legal@v1", WEIGHTS, data)


def with_nan() -> bytes:
    tensors = adapter_tensors(1)
    next(iter(tensors.values()))[0, 0] = np.nan
    return safetensors(tensors)


def object_of(table: str, column: str, data: bytes) -> Change:
    def change(forged: Forged) -> None:
        del forged.objects[forged.rows[table][0][column]]
        forged.rows[table][0][column] = forged.put(data)

    return change


def items(data: bytes) -> Change:
    def change(forged: Forged) -> None:
        object_of("suites", "items", data)(forged)
        forged.rename(forged.rows["suites"][0]["digest"], forged.rows["suites"][0]["items"])

    return change


def manifest(data: bytes) -> Change:
    def change(forged: Forged) -> None:
        forged.rename(forged.thing("legal@v1")["digest"], forged.put(data))
        forged.prune()

    return change


def add_row(table: str, **more: Any) -> Change:
    return lambda f: f.rows[table].append({**f.rows[table][-1], **more})


def drop(table: str, which: int) -> Change:
    return lambda f: f.rows[table].pop(which)


def last_event(**more: Any) -> Change:
    """One more row at the end of the journal."""

    def change(forged: Forged) -> None:
        last = forged.rows["journal"][-1]
        plain = {f"{side}_{what}": None for side in ("from", "to") for what in ("number", "ref", "digest")}
        row = {**last, **plain, "alias": None, "moves": 0, "verdict": None, "detail": "{}", "name": "legal"}
        row |= {"seq": last["seq"] + 1, "at": last["at"][:-7] + "999999Z", **more}
        forged.rows["journal"].append(row)

    return change


def side(side: str, ref: str) -> dict[str, Any]:
    return {f"{side}_ref": ref, f"{side}_number": int(ref.rpartition("@v")[2]), f"{side}_digest": "x"}


def cycle(forged: Forged) -> None:
    """acme@v1 says that it contains big@v1, which contains acme@v1."""
    big, row = forged.thing("big@v1"), forged.thing("acme@v1")
    value = {"stack": [{**json.loads(big["tree"]), "name": "big@v1", "lock": big["digest"]}]}
    row["tree"], row["recipe"] = written(value), "stack: [big@v1]"


def purge_live(forged: Forged) -> None:
    version = forged.thing("legal@v1")
    weights = next(digest for path, _, digest in version["files"] if path == WEIGHTS)
    erased = sorted([version["digest"], weights])
    last_event(verb="purge", detail=written({"erased": erased}), **side("from", "legal@v1"))(forged)
    for digest in erased:
        del forged.objects[digest]


def timestamp_in(hours: int) -> str:
    return timestamp(datetime.now(UTC) + timedelta(hours=hours))


def files_that_lie(forged: Forged) -> None:
    version = forged.thing("legal@v1")
    version["files"][0][1] += 5
    version["size"] += 5
    forged.manifest("legal@v1")


def number_out_of_turn(forged: Forged) -> None:
    number = 2**53 - 1
    add_row("versions", name="legal", number=number, digest=SHA)(forged)
    last_event(verb="add", **side("to", f"legal@v{number}"))(forged)


def same_bytes_twice(forged: Forged) -> None:
    first = forged.thing("tone@v1")
    forged.thing("tone@v2").update({key: first[key] for key in ("digest", "files", "size")})


def other_base(forged: Forged) -> None:
    add_row("bases", weights=SHA)(forged)
    forged.thing("acme@v1")["base"][0] = SHA


def erased_of_another(forged: Forged) -> None:
    erased = json.loads(forged.events("purge")[0]["detail"])["erased"]
    detail("purge", erased=[*erased, forged.thing("legal@v1")["digest"]])(forged)


def bad_record(forged: Forged) -> None:
    forged.thing("tone@v1")["run"] = forged.put(b"\xff\xfe")
    forged.prune()


DEEP = "[" * 200_000 + "]" * 200_000
FUTURE = "9999-12-31T23:59:59.999999Z"
SHA = "sha256:" + "0" * 64

CHANGES: dict[str, tuple[Change, str]] = {
    # times
    "a time that is none": (event("promote", at="2026-99-99T99:99:99.999999Z"), "a time must be ISO"),
    "a time in other digits": (event("promote", at="٢٠٢٦-01-01T00:00:00.000000Z"), "a time"),
    "a time in the far future": (event("promote", at=FUTURE), "still to come"),
    "a time that another machine will see": (
        lambda f: f.rows["journal"][-1].update(at=timestamp_in(3)),
        "still to come",
    ),
    "a version made in the future": (at("versions", "created", FUTURE), "still to come"),
    "a suite made in the future": (at("suites", "created", FUTURE), "still to come"),
    "a time before an earlier row's": (
        lambda f: f.rows["journal"][-1].update(at="2020-01-01T00:00:00.000000Z"),
        "a time before",
    ),
    # numbers and types
    "a number as a truth value": (at("versions", "rank", True), "rank of another type"),
    "a number as text": (at("versions", "size", "12"), "size of another type"),
    "a huge number": (at("versions", "rank", 10**40), "rank out of range"),
    "a huger number": (at("evals", "score", 10**400), "score out of range"),
    "half a number": (at("versions", "rank", 1.5), "rank of another type"),
    "a negative rank": (at("versions", "rank", -1), "numbers"),
    "a version out of turn": (number_out_of_turn, "a number out of turn"),
    "no score": (at("evals", "score", None), "nothing as score"),
    "a score that is no number": (at("evals", "score", float("nan")), "records must be plain JSON"),
    "an infinite score": (at("evals", "high", float("inf")), "records must be plain JSON"),
    "a lone surrogate": (at("names", "owner", "\ud800"), "UnicodeEncodeError"),
    "a surrogate inside JSON": (
        lambda f: f.events("describe")[0].update(detail='{"description":"\\ud800"}'),
        "not canonical",
    ),
    "an unknown column": (at("versions", "evil\x1b", 1), "unknown column"),
    "a list for a text": (at("names", "owner", []), "owner of another type"),
    "a base that is a number": (at("versions", "base", 1), "it has base"),
    "a base of other things": (at("versions", "base", [1, 2, 3]), "it has base"),
    # versions
    "files that are no list": (at("versions", "files", {}), "files that is no list"),
    "a pickle": (lambda f: f.replace_file("legal@v1", "adapter_model.bin", b"x"), "it has files"),
    "a path that climbs": (
        lambda f: f.replace_file("legal@v1", "../adapter_config.json", b"{}"),
        "it has files",
    ),
    "a version without weights": (lambda f: f.thing("legal@v1").update(files=[]), "it has files"),
    "a file twice": (
        lambda f: f.thing("legal@v1")["files"].append(f.thing("legal@v1")["files"][0]),
        "it has files",
    ),
    "another size": (lambda f: f.thing("legal@v1").update(size=1), "a size that is not"),
    "another manifest": (manifest(b"[]"), "not those of its manifest"),
    "a manifest that is no JSON": (manifest(b"\xff"), "not those of its manifest"),
    "a manifest that is too deep": (manifest(DEEP.encode()), "not those of its manifest"),
    "sizes that lie": (files_that_lie, "another size than it says"),
    "other parameters": (at("versions", "parameters", 1), "parameters"),
    "NaN in the weights": (weights(with_nan()), "legal@v1 in the bundle"),
    "weights of another width": (
        weights(safetensors({k: v[:, :4] for k, v in adapter_tensors(1).items()})),
        "legal@v1 in the bundle",
    ),
    "weights that are none": (weights(b"junk"), "legal@v1 in the bundle"),
    "a header of weights that lies": (
        weights(with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,40]}}', bytes(4))),
        "legal@v1 in the bundle",
    ),
    "a config with code": (config(auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "a config that is no JSON": (
        lambda f: f.replace_file("legal@v1", CONFIG, b"{"),
        "legal@v1 in the bundle",
    ),
    "another kind of name": (lambda f: f.rows["names"][0].update(kind="adapter"), "no variant's"),
    "an unknown kind of name": (at("names", "kind", "base\x1b"), "kind"),
    "a name that is none": (at("names", "name", "../x"), "a name must match"),
    "a name that nothing mentions": (add_row("names", name="zzz"), "a name that it never mentions"),
    "a name twice": (add_row("names"), "a name twice"),
    "the same version twice": (
        lambda f: f.rows["versions"].append(dict(f.rows["versions"][0])),
        "a number twice",
    ),
    "the same bytes under two numbers": (same_bytes_twice, "does not go with what is here"),
    "targets that are no list": (at("versions", "targets", '{"a":1}'), "JSON that is no list"),
    "a card of numbers": (at("versions", "card", '{"tags":7}'), "card"),
    "lineage too deep": (at("versions", "lineage", DEEP), "RecursionError"),
    "JSON with spaces": (at("versions", "targets", '[ "q_proj"]'), "not canonical"),
    "a training record that is none": (bad_record, "is not sound JSON"),
    "a base with other tensors": (
        lambda f: add_row("bases", source="x", tensors=f.put(b"{}"))(f),
        "other tensors",
    ),
    "tensors that are none": (object_of("bases", "tensors", b'{"a":1}'), "is not sound"),
    "tensors that are no JSON": (object_of("bases", "tensors", b"\xff"), "is not sound"),
    "tensors that are endless": (object_of("bases", "tensors", b'{"a":["F32",[1e999]]}'), "is not sound"),
    "a base that is missing": (drop("bases", 0), "a base that is not in the bundle"),
    # locks
    "a tree that is too deep": (at("locks", "tree", DEEP), "RecursionError"),
    "a tree of many levels": (
        lambda f: f.thing("acme@v1").update(
            tree='{"stack":[' * 100 + '{"use":"base","weight":1.0}' + "]}" * 100
        ),
        "a tree that is none",
    ),
    "a tree that is a list": (at("locks", "tree", "[]"), "JSON that is no dict"),
    "an unknown operator": (
        tree("acme@v1", lambda t: t.update(pipe=t.pop("stack"))),
        "a node with other keys",
    ),
    "two operators": (tree("acme@v1", lambda t: t.update(merge=[])), "a node with other keys"),
    "a member without name": (tree("acme@v1", lambda t: t["stack"][0].pop("name")), "KeyError"),
    "a member that is not there": (
        tree("acme@v1", lambda t: t["stack"][0].update(name="legal@v9")),
        "a member that is not",
    ),
    "a member with other bytes": (
        tree("acme@v1", lambda t: t["stack"][0].update(use=SHA)),
        "a member that is not",
    ),
    "a member by alias": (tree("acme@v1", lambda t: t["stack"][0].update(name="legal@prod")), "not exact"),
    "a base with a name": (tree("acme@v1", lambda t: t["stack"][0].update(use="base")), "a base with a name"),
    "a weight that is no number": (tree("acme@v1", lambda t: t["stack"][0].update(weight="1")), "a weight"),
    "an endless weight": (tree("acme@v1", lambda t: t["stack"][0].update(weight=10**400)), "OverflowError"),
    "an operator without members": (
        tree("acme@v1", lambda t: t.update(stack=[])),
        "an operator without members",
    ),
    "a method that is none": (tree("acme@v2", lambda t: t.update(method=7)), "a method"),
    "parameters of parameters": (tree("acme@v2", lambda t: t.update(params={"a": {}})), "parameters"),
    "a route without router": (tree("big@v1", lambda t: t["route"].pop("router")), "half a router"),
    "a router that is no digest": (tree("big@v1", lambda t: t["route"].update(router="../../x")), "a router"),
    "an unknown router": (tree("big@v1", lambda t: t["route"].update(by="magic")), "a route"),
    "a variant that is another": (
        tree("big@v1", lambda t: t["route"]["experts"][0]["stack"].pop()),
        "another variant",
    ),
    "a variant without digest": (tree("big@v1", lambda t: t["route"]["experts"][0].pop("lock")), "KeyError"),
    "a cycle": (cycle, "a variant that is not in the bundle"),
    "a recipe of another tree": (
        lambda f: f.thing("acme@v1").update(recipe="legal@v1"),
        "a recipe of another tree",
    ),
    "a recipe that is none": (lambda f: f.thing("acme@v1").update(recipe="{" * 5000), "row 1 of locks"),
    "a recipe that is a bomb": (lambda f: f.thing("acme@v1").update(recipe="a: &a [x, x]\nb: *a"), "anchors"),
    "a guard that does not parse": (
        lambda f: f.thing("acme@v2").update(guard='{"forget":"x"}'),
        "forget must be",
    ),
    "a guard pinned to nothing": (lambda f: f.thing("acme@v2").update(guard='{"pinned":null}'), "pinned"),
    "a lock for another base": (other_base, "a member for another base"),
    # scores, suites and reports
    "a key that is another's": (lambda f: None, "key"),
    "outcomes of another n": (at("evals", "n", 3), "one outcome for each"),
    "outcomes that are none": (at("evals", "outcomes", "b:0120"), "outcomes"),
    "outcomes that are texts": (at("evals", "outcomes", '["a","b","c","d"]'), "outcomes"),
    "outcomes that are a dict": (at("evals", "outcomes", '{"a":1,"b":2,"c":3,"d":4}'), "no list"),
    "outcomes that say another score": (at("evals", "outcomes", "b:0000"), "not that of its outcomes"),
    "a score outside its interval": (at("evals", "low", 0.99), "outside its interval"),
    "a protocol that is a list": (at("evals", "protocol_detail", "[]"), "no dict"),
    "a subject that is elsewhere": (at("evals", "subject", SHA), "a subject that is not"),
    "a score of another base": (
        lambda f: f.rows["evals"][1].update(base_weights=SHA),
        "a subject that is not",
    ),
    "items that are no JSON": (items(b"a\nb\nc\nd\n"), "is not sound JSON"),
    "items of another digest": (object_of("suites", "items", b"{}\n"), "not that of its items"),
    "another number of items": (at("suites", "n", 7), "has 4 items, not 7"),
    "a report that is none": (object_of("reports", "object", b"[]"), "is not sound JSON"),
    "a report of something else": (at("reports", "subject", SHA), "a subject that is not"),
    # the journal
    "a version that nobody announced": (
        lambda f: f.rows["journal"].remove(f.events("add", "style")[-1]),
        "in it before there was any",
    ),
    "a row about what is not there": (
        last_event(verb="yank", **side("from", "legal@v9")),
        "a from that is not",
    ),
    "a version announced twice": (last_event(verb="add", **side("to", "legal@v1")), "a number out of turn"),
    "a promotion of what comes later": (
        lambda f: f.rows["journal"][0].update(verb="promote", moves=1, alias="prod"),
        "a to that comes later",
    ),
    "an unknown verb": (event("promote", verb="bless"), "the verb"),
    "a move that says it is none": (event("promote", moves=0), "moves or alias"),
    "a refusal that moves": (
        last_event(verb="refused", alias="prod", moves=1, **side("to", "legal@v1")),
        "moves or alias",
    ),
    "a promotion of what was yanked": (
        last_event(
            verb="promote", alias="prod", moves=1, **side("from", "legal@v1"), **side("to", "legal@v3")
        ),
        "a move to what was yanked",
    ),
    "a promotion from elsewhere": (
        last_event(
            verb="promote", alias="prod", moves=1, **side("from", "legal@v3"), **side("to", "legal@v2")
        ),
        "a move from where",
    ),
    "a rollback to nowhere": (detail("rollback", entry=99), "nothing to land on"),
    "a rollback to true": (detail("rollback", entry=True), "nothing to land on"),
    "a rollback without entry": (lambda f: f.events("rollback")[0].update(detail="{}"), "KeyError"),
    "a cause that is a list": (detail("rollback", cause=[]), "a cause"),
    "an alias that is a number": (event("promote", alias="v1"), "an alias must not"),
    "retired, though it was live": (
        last_event(verb="retire", **side("from", "legal@v2")),
        "retired what was live",
    ),
    "yanked twice": (last_event(verb="yank", **side("from", "legal@v3")), "before"),
    "purged twice": (
        last_event(verb="purge", name="tone", detail='{"erased":[]}', **side("from", "tone@v3")),
        "purged before",
    ),
    "erased what it does not say": (detail("purge", erased=[]), "erased what was not its own"),
    "erased what is another's": (erased_of_another, "erased what was not its own"),
    "erased a number": (detail("purge", erased=[7]), "AttributeError"),
    "erased nothing at all": (lambda f: f.events("purge")[0].update(detail="{}"), "KeyError"),
    "a purge of what is live": (purge_live, "is live in"),
    "a guard in the journal that does not parse": (detail("guard", guard={"gain": 2}), "gain must be"),
    "a guard pinned by half a digest": (
        detail("guard", guard={"pinned": {"general": "sha256:00"}}),
        "a pinned suite",
    ),
    "a tag that is none": (detail("describe", tag=["<b>\x1b"]), "a tag is a word"),
    "tags that are numbers": (detail("describe", tag=[[1]]), "a tag is a word"),
    "an owner that is a list": (detail("describe", owner=["x"]), "an owner"),
    "a description without end": (detail("describe", description="x" * 2001), "at most 2000"),
    "a reason without end": (event("yank", why="x" * 4097), "who or why"),
    "a verdict that is a list": (event("promote", verdict="[]"), "no dict"),
    "a verdict without reasons": (
        event("promote", verdict='{"checks":[],"passed":true,"reasons":5}'),
        "TypeError",
    ),
    "a detail that is a list": (event("promote", detail="[]"), "no dict"),
    "a detail that is too deep": (event("promote", detail=DEEP), "RecursionError"),
    "a record that is another's": (detail("add", record=SHA), "not the one that its journal row sealed"),
    "an origin that is a text": (detail("promote", origin="x"), "an origin"),
    "an origin that is another row": (
        detail("promote", origin={"seq": 1, "previous": SHA, "hash": SHA, "detail": "{}"}),
        "an origin that it does not come from",
    ),
    "rows in another order": (lambda f: f.rows["journal"][4].update(seq=3), "a place before"),
    "a row of another name's kind": (lambda f: f.events("lock")[0].update(verb="add"), "a add of a name"),
}


UNSEALED = {
    "a key that is another's": at("evals", "key", SHA),
    "a record that is another's": detail("add", record=SHA),
}
"""Those that sealing would mend."""


@pytest.mark.parametrize("what", CHANGES)
def test_what_no_registry_would_have_written(what: str, good: Path, target: Registry, tmp_path: Path) -> None:
    change, said = CHANGES[what]
    forged = Forged(good)
    change(forged)
    forged.seal()
    if what in UNSEALED:
        UNSEALED[what](forged)
        forged.chain()
    refused(target, forged.write(tmp_path / "bad.bundle"), said)


def test_words_with_escapes_newlines_and_sql_arrive_as_they_are_and_are_shown_escaped(
    good: Path, target: Registry
) -> None:
    target.unbundle(good)
    (event,) = [e for e in target.journal("legal") if e.verb == "promote" and e.to_ref == "legal@v2"]
    assert event.why == "better\x1b[2J\nthan before'; DROP TABLE names; --"
    assert event.sentence().endswith("better\\x1b[2J\\x0athan before'; DROP TABLE names; --")
    assert "\x1b" not in event.sentence() and "\n" not in event.sentence()


def test_a_hostile_bundle_cannot_make_repair_write_wrong_bytes(
    rich: Registry, good: Path, tmp_path: Path
) -> None:
    forged = Forged(good)
    victims = list(rich._store.objects.all())
    for digest, path in victims:
        forged.objects[digest] = forged.objects[digest] + b"evil"
        path.unlink()
    forged.write(tmp_path / "bad.bundle")
    before = snapshot(rich)
    with pytest.raises(IntegrityError, match="does not have the bytes"):
        rich.repair(tmp_path / "bad.bundle")
    assert snapshot(rich) == before
    assert len(rich.repair(good)) == len(victims) and rich.fsck() == []


def test_a_bundle_cannot_erase_what_is_needed_here(
    rich: Registry, good: Path, target: Registry, tmp_path: Path
) -> None:
    """A version that came without bytes, because it was purged, may claim any weights as its own."""
    target.unbundle(good)
    victim = next(
        f for f in target._store.manifest(target.resolve("legal@v1").digest) if f["path"] == WEIGHTS
    )
    forged = Forged(good)
    claimed = next(digest for path, _, digest in forged.thing("tone@v3")["files"] if path == WEIGHTS)
    forged.rename(claimed, str(victim["sha256"]))
    for table in ("names", "versions", "journal"):
        forged.rows[table] = [row for row in forged.rows[table] if row["name"] == "tone"]
    for table in ("suites", "locks", "evals"):
        forged.rows[table] = []
    subjects = [row["digest"] for row in forged.rows["versions"]]
    forged.rows["reports"] = [row for row in forged.rows["reports"] if row["subject"] in subjects]
    forged.rows = json.loads(written(forged.rows).replace('"tone', '"evil'))
    forged.header["complete"] = False
    forged.prune()
    alive, *dead = forged.rows["versions"]
    kept = {digest for _, _, digest in alive["files"]}
    for row in dead:
        for digest in {row["digest"], *(digest for _, _, digest in row["files"])} - kept:
            forged.objects.pop(digest, None)
    refused(target, forged.seal().write(tmp_path / "bad.bundle"), "has the weights of evil@v3 too")
    assert target.resolve("legal@v1").path.is_dir()


# Anything at all, in any column of any row

_TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "", "{}", "[]", "null", "7", '"x"', "{", DEEP[:4000], '{"a":1}', '["a"]', "b:1", "b:", SHA,
            FUTURE, "sha256:x", "legal@v1", "legal@v99", "base", "../x", "legal", "acme", "prod", "v1",
            "\x1b[2J", "a\nb",
            "add", "lock", "promote", "rollback", "yank", "purge", "retire", "guard", "describe", "disable",
            '{"use":"base","weight":1.0}', '{"stack":[]}', '{"entry":1}', '{"origin":{}}', '{"guard":{}}',
            '{"erased":[]}', "2020-01-01T00:00:00.000000Z", "adapter", "variant",
        ]
    ),
)  # fmt: skip
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 6),
    st.sampled_from([2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400]),
    st.floats(),
    _TEXTS,
    st.lists(st.one_of(st.integers(), _TEXTS), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, and in the JSON that its texts hold."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return [path, *((*path, "JSON", *rest) for rest in places(json.loads(value)) if rest)]
        except (ValueError, RecursionError):
            return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in items for place in places(child, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if path[0] == "JSON":
        return written(put(json.loads(value), path[1:], new))
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def use(registry: Registry, folder: Path) -> None:
    """Everything that reads rows. What was taken over is a sound store, or it would have been refused."""
    assert registry.fsck() == []
    for row in registry.names():
        about = registry.about(row.name)
        things = registry.versions(row.name) if about.kind == "adapter" else registry.locks(row.name)
        for thing in things:
            registry.dependents(thing)
            registry.evals(thing.digest)
            if thing.state != "purged":  # whose reports are erased
                registry.reports(thing.digest)
            if thing.state in ("active", "yanked") and about.kind == "adapter":
                assert thing.path.is_dir()  # type: ignore[union-attr]
    for event in registry.journal():
        assert "\x1b" not in event.sentence() and "\n" not in event.sentence()
    registry.drifted()
    registry.bundle(folder / "again.bundle")
    with Registry.open(folder / "second", create=True) as second:
        second.unbundle(folder / "again.bundle")
        assert second.journal_head() == registry.journal_head() and second.fsck() == []
    for call in (
        lambda: registry.promote("legal@v1", "prod", force=True, why="x"),
        lambda: registry.rollback("legal@prod", why="x", otherwise="disable", dependents=True),
        lambda: registry.lock("acme", {"stack": ["legal@v1", "style@v1"]}),
        lambda: registry.yank("legal@v1", why="x", rollback_dependents=True, otherwise="disable"),
    ):
        try:
            call()
        except InlayError:
            continue
    assert registry.fsck() == []


def try_mutated(data: st.DataObject, folder: Path, good: Path, empty: Path, changes: int) -> None:
    forged = Forged(good)
    for _ in range(changes):
        table = data.draw(st.sampled_from(sorted(forged.rows)))
        rows = forged.rows[table]
        if not rows:
            continue
        which = data.draw(st.integers(0, len(rows) - 1))
        place = data.draw(st.sampled_from(places(rows[which])[1:]))
        try:
            put(rows[which], place, data.draw(_VALUES))
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    if data.draw(st.booleans()):
        forged.prune()
    path, store = folder / "mutated.bundle", folder / "store"
    for left in (folder / "again.bundle", path):
        left.unlink(missing_ok=True)
    for left in (store, folder / "second"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(empty, store)
    forged.seal().write(path)
    with Registry.open(store) as registry:
        before = rows_of(registry)
        try:
            registry.unbundle(path)
        except InlayError as error:
            assert "\x1b" not in str(error) and "\n" not in str(error)
            assert rows_of(registry) == before
        else:
            use(registry, folder)


_QUIET: list[HealthCheck] = [
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
]


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty") / "store"
    Registry.open(folder, create=True).close()
    return folder


@settings(max_examples=40, deadline=None, suppress_health_check=_QUIET)
@given(data=st.data())
def test_anything_in_any_column(data: st.DataObject, tmp_path: Path, good: Path, empty: Path) -> None:
    try_mutated(data, tmp_path, good, empty, data.draw(st.integers(1, 2)))


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=_QUIET)
@given(data=st.data())
def test_anything_in_any_column_at_length(
    data: st.DataObject, tmp_path: Path, good: Path, empty: Path
) -> None:
    try_mutated(data, tmp_path, good, empty, data.draw(st.integers(1, 3)))
