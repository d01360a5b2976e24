"""Push and pull through the command line, against a hub on loopback."""

from __future__ import annotations

import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import (
    TOKEN,
    Ran,
    Runner,
    adapter_files,
    environment,
    make_adapter,
    make_base,
    run_alone,
    runner,
)
from hub_server import Hub
from safetensors.numpy import load

from inlay.hub import names_repo
from inlay.registry import Registry

CARD = b"---\nlicense: apache-2.0\nbase_model: org/base\nlanguage: en\n---\n# Clauses\n"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refused(ran: Ran, code: int, *words: str) -> None:
    """The verb ended with `code` and one short line that has the words."""
    assert ran.code == code, (ran.code, ran.err, ran.out)
    lines = [line for line in ran.err.splitlines() if line.startswith("inlay: ")]
    assert len(lines) == 1 and "Traceback" not in ran.err, ran.err
    for word in words:
        assert word in lines[0], ran.err
    assert "x" * 200 not in lines[0], "the hub's long texts are cut"


def done(ran: Ran) -> Any:
    """What the verb printed with --json; it must not have failed."""
    return ran.result


# The way there and back


def test_what_was_pushed_comes_back_as_it_was(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    more = {"README.md": CARD, "LICENSE": b"Apache License\n"}
    version = store.add("legal", make_adapter(tmp_path / "a", more=more), base=small, why="first")
    pushed = verbs("push", "legal@v1", "acme/legal", "--store", store.path, "--json").result
    assert pushed["changed"] is True
    assert pushed["commit"] == hub.repos["acme/legal"].branches["main"]
    assert pushed["url"] == f"{hub.endpoint}/acme/legal/commit/{pushed['commit']}"

    sent = hub.head("acme/legal")
    assert sorted(pushed["files"]) == sorted(sent.keys() - {".gitattributes"})
    for name in (CONFIG, WEIGHTS, "LICENSE"):
        assert sent[name] == (tmp_path / "a" / name).read_bytes(), "byte for byte"
    assert sent["ORIGINAL_CARD.md"] == CARD

    pulled = verbs("pull", "acme/legal", "mine", "--base", small, "--store", there.path, "--json").result
    here = there.resolve("mine@v1")
    assert here.digest == version.digest == pulled["digest"]
    assert here.licence == "apache-2.0"  # type: ignore[union-attr]
    assert here.card["base_model"] == "org/base"  # type: ignore[union-attr]
    assert here.lineage == {  # type: ignore[union-attr]
        "hub": {
            "repo": "acme/legal",
            "commit": pushed["commit"],
            "revision": "main",
            "endpoint": hub.endpoint,
            "pushed": {"ref": "legal@v1", "digest": version.digest},
        }
    }
    assert there.fsck() == []

    hub.requests.clear()
    again = verbs("pull", "acme/legal", "mine", "--base", small, "--store", there.path, "--json").result
    assert again["ref"] == "mine@v1", "the same bytes are the version they are already"


def test_nothing_new_makes_no_commit(
    hub: Hub, verbs: Runner, store: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    first = verbs("push", "legal@v1", "acme/legal", "--store", store.path, "--json").result
    commits, uploads = len(hub.repos["acme/legal"].commits), len(hub.seen("PUT", "/upload/"))
    second = verbs("push", "legal@v1", "acme/legal", "--store", store.path, "--json").result
    assert (second["commit"], second["changed"]) == (first["commit"], False)
    assert len(hub.repos["acme/legal"].commits) == commits
    assert len(hub.seen("PUT", "/upload/")) == uploads == 1
    said = verbs("push", "legal@v1", "acme/legal", "--store", store.path)
    assert "nothing changed, no commit was made" in said.out

    # The next version replaces it; what only the earlier one had does not stay behind.
    store.add("legal", make_adapter(tmp_path / "b", 2, more={"LICENSE": b"MIT License\n"}), base=small)
    store.add("legal", make_adapter(tmp_path / "c", 3), base=small)
    done(verbs("push", "legal@v2", "acme/legal", "--store", store.path, "--json"))
    assert "LICENSE" in hub.head("acme/legal")
    assert b"license: mit" in hub.head("acme/legal")["README.md"]
    done(verbs("push", "legal@v3", "acme/legal", "--store", store.path, "--json"))
    assert "LICENSE" not in hub.head("acme/legal")
    assert hub.head("acme/legal")[WEIGHTS] == (tmp_path / "c" / WEIGHTS).read_bytes()


def test_a_commit_is_pinned_although_main_moved(
    hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    old = hub.seed("org/lora", adapter_files(1))
    new = hub.seed("org/lora", adapter_files(2))
    for revision, commit, seed in ((old, old, 1), (None, new, 2)):
        asked = ["--revision", revision] if revision else []
        ran = verbs("pull", "org/lora", "x", "--base", small, "--store", there.path, "--json", *asked)
        version = there.resolve(ran.result["ref"])
        assert version.lineage["hub"]["commit"] == commit  # type: ignore[union-attr,index]
        assert version.lineage["hub"]["revision"] == (revision or "main")  # type: ignore[union-attr,index]
        assert there.read_file(version, WEIGHTS) == adapter_files(seed)[WEIGHTS]  # type: ignore[arg-type]
    asked_for = {r.path.split("/")[4] for r in hub.seen("GET", "/resolve/")}
    assert asked_for == {old, new}, "files are asked for by commit, never by branch"


def test_a_variant_leaves_as_one_adapter(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("domain", "style"), 1):
        store.add(name, make_adapter(tmp_path / name, seed, more={"LICENSE": b"MIT License\n"}), base=small)
    store.lock("acme", {"stack": ["domain@v1", {"use": "style@v1", "weight": 0.5}]}, why="for acme")
    store.lock("merged", {"merge": ["domain@v1", "style@v1"], "method": "ties", "rank": 2})
    store.lock("routed", {"route": {"by": "arrow", "experts": ["domain@v1", "style@v1"]}})
    done(verbs("push", "acme@v1", "acme/model", "--store", store.path, "--json"))
    done(verbs("pull", "acme/model", "flat", "--base", small, "--store", there.path, "--json"))
    flat = there.resolve("flat@v1")
    assert (flat.rank, flat.exactness, flat.licence) == (4, "exact", "mit")  # type: ignore[union-attr]
    assert flat.lineage["hub"]["pushed"]["ref"] == "acme@v1"  # type: ignore[union-attr,index]

    # Oracle: the weighted sum of the members' products, in float64.
    found = load(there.read_file(flat, WEIGHTS))  # type: ignore[arg-type]
    parts = [load(adapter_files(seed)[WEIGHTS]) for seed in (1, 2)]
    for key in (k for k in found if k.endswith("lora_A.weight")):
        other = key.replace("lora_A", "lora_B")
        expected = sum(
            weight * 2.0 * part[other].astype("f8") @ part[key].astype("f8")
            for weight, part in zip((1.0, 0.5), parts, strict=True)
        )
        assert abs(found[other].astype("f8") @ found[key].astype("f8") - expected).max() < 1e-5

    claim = json.loads(hub.head("acme/model")["inlay.json"])
    assert [(m["ref"], m["weight"]) for m in claim["members"]] == [("domain@v1", 1.0), ("style@v1", 0.5)]
    refused(verbs("push", "routed@v1", "acme/routed", "--store", store.path), 2, "routes at the root")
    assert "acme/routed" not in hub.repos, "refused before anything was made"
    done(verbs("push", "merged@v1", "acme/merged", "--store", store.path, "--json"))
    assert json.loads(hub.head("acme/merged")["adapter_config.json"])["r"] == 2


# Cut off


@pytest.mark.parametrize("case", ["goes on", "the hub sends all of it", "what is there is wrong"])
def test_what_an_earlier_attempt_left(
    case: str, hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    files = adapter_files(sum(map(ord, case)))
    whole = files[WEIGHTS]
    hub.seed("org/lora", files)
    pull = ("pull", "org/lora", "x", "--base", small, "--store", there.path)
    hub.faults.status = {"/object/": 500}
    before = set(verbs.cache.rglob("*.part"))
    refused(verbs(*pull), 3, "the hub answered 500")
    hub.faults.status = {}
    (partial,) = set(verbs.cache.rglob("*.part")) - before
    partial.write_bytes(bytes(300) if case == "what is there is wrong" else whole[:300])
    hub.requests.clear()
    hub.faults.ignore_range = case == "the hub sends all of it"
    ran = verbs(*pull)
    (served,) = hub.seen("GET", "/object/")
    assert served.headers["range"] == "bytes=300-"
    assert served.sent == len(whole) - (0 if hub.faults.ignore_range else 300)
    if case == "what is there is wrong":
        refused(ran, 1, "are not the")
        assert not partial.exists()
        ran = verbs(*pull)
    assert ran.code == 0, ran.err
    assert there.read_file(there.resolve("x@v1"), WEIGHTS) == whole  # type: ignore[arg-type]
    assert not partial.parent.exists(), "the download is cleared away"


@pytest.mark.slow
def test_a_cut_download_goes_on(hub: Hub, there: Registry, tmp_path: Path) -> None:
    wide = make_base(tmp_path / "wide", width=512)
    files = adapter_files(rank=1536, width=512)  # 25 MB; the hub's client writes 10 MiB at a time
    whole = len(files[WEIGHTS])
    assert whole > 25_000_000
    hub.seed("org/lora", files)
    hub.faults.cut["/object/"] = 15_000_000
    hub.faults.then["/object/"] = {"/object/": 500}
    env = environment(hub, tmp_path)
    pull = ("pull", "org/lora", "big", "--base", wide, "--store", there.path)
    refused(run_alone(env, *pull), 3, "the hub answered 500", "try again")
    assert there.names() == [], "nothing is registered"
    parts = [p for p in (tmp_path / "cache").rglob("*.part") if p.stat().st_size]
    assert [p.name for p in parts] == [f"{WEIGHTS}.part"]
    kept = parts[0].stat().st_size
    assert 0 < kept < whole

    hub.faults.status.clear()
    hub.requests.clear()
    with open(parts[0].parent.parent / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(run_alone(env, *pull), 3, "another process is pulling org/lora")
    assert hub.seen("GET", "/resolve/") == []
    assert run_alone(env, *pull).code == 0
    served = hub.seen("GET", "/object/")
    assert [r.headers.get("range") for r in served] == [f"bytes={kept}-"]
    assert sum(r.sent for r in served) == whole - kept
    version = there.resolve("big@v1")
    assert there.read_file(version, WEIGHTS) == files[WEIGHTS]  # type: ignore[arg-type]
    assert not list((tmp_path / "cache" / "hub").iterdir()), "the download is cleared away"


def test_a_cut_upload_sends_nothing_twice(
    hub: Hub, verbs: Runner, store: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    push = ("push", "legal@v1", "acme/legal", "--store", store.path)
    hub.faults.hang_up.append("/commit/")
    refused(verbs(*push), 3, "cannot be reached", "try again")
    assert WEIGHTS not in hub.head("acme/legal")
    assert len(hub.seen("PUT", "/upload/")) == 1
    hub.faults.hang_up.clear()
    assert verbs(*push).code == 0
    assert len(hub.seen("PUT", "/upload/")) == 1, "the hub has the weights already"
    assert hub.head("acme/legal")[WEIGHTS] == (tmp_path / "a" / WEIGHTS).read_bytes()


# What is refused


def test_pickles_are_refused_with_the_command_that_converts_them(
    hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    files = {
        CONFIG: adapter_files()[CONFIG],
        "adapter_model.bin": b"\x80\x04.",
        "training_args.bin": b"\x80\x04.",
    }
    hub.seed("org/old", files)
    ran = verbs("pull", "org/old", "x", "--base", small, "--store", there.path)
    refused(ran, 2, "only adapter_model.bin", "weights_only=True", "hf download org/old")
    assert hub.seen("GET", "/resolve/") == [], "not a byte was downloaded"


@pytest.mark.parametrize(
    ("stated", "code", "words"),
    [
        (100, 1, ("are not the 100 bytes",)),
        (65 << 30, 2, ("must be at most", str(65 << 30))),
        (-1, 2, ("does not state size and digest",)),
    ],
)
def test_a_file_larger_than_stated_or_allowed_is_refused(
    stated: int, code: int, words: tuple[str, ...], hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    hub.seed("org/lora", adapter_files())
    hub.sizes[WEIGHTS] = stated
    refused(verbs("pull", "org/lora", "x", "--base", small, "--store", there.path), code, *words)
    assert there.names() == []
    if code == 2:
        assert hub.seen("GET", "/resolve/") == []


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_other_bytes_than_stated_are_refused(
    name: str, hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    hub.seed("org/lora", adapter_files())
    hub.faults.bodies[name] = lambda data: data[:-1] + bytes([data[-1] ^ 1])
    pull = ("pull", "org/lora", "x", "--base", small, "--store", there.path)
    refused(verbs(*pull), 1, name, "are not the")
    assert there.names() == []
    hub.faults.bodies.clear()
    assert verbs(*pull).code == 0, "the bad bytes were not kept"


def test_odd_file_names_are_left_where_they_are(
    hub: Hub, verbs: Runner, there: Registry, small: Path, tmp_path: Path
) -> None:
    odd = [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        f"sub/{WEIGHTS}",
        f"{CONFIG}\n",
        "evil\x1b[2J.bin",
        "train.py",
    ]
    blob = hashlib.sha1(b"").hexdigest()
    hub.seed("org/lora", adapter_files())
    hub.extra_siblings["org/lora"] = [{"rfilename": n, "size": 0, "blobId": blob} for n in odd]
    before = {p for p in tmp_path.rglob("*") if there.path not in p.parents}
    assert verbs("pull", "org/lora", "x", "--base", small, "--store", there.path).code == 0
    asked_for = {r.path.rpartition("/")[2] for r in hub.seen("GET", "/resolve/")}
    assert asked_for == {CONFIG, WEIGHTS}
    assert {p for p in tmp_path.rglob("*") if there.path not in p.parents} == before
    version = there.resolve("x@v1")
    assert sorted(p.name for p in version.path.iterdir()) == [CONFIG, WEIGHTS]  # type: ignore[union-attr]


def test_weights_that_were_exchanged_after_the_push_are_refused(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    pushed = verbs("push", "legal@v1", "acme/legal", "--store", store.path, "--json").result
    hub.seed("acme/legal", hub.head("acme/legal") | {WEIGHTS: adapter_files(9)[WEIGHTS]})
    pull = ("pull", "acme/legal", "mine", "--base", small, "--store", there.path)
    refused(verbs(*pull), 1, "not the one that inlay.json there says was pushed as legal@v1")
    assert verbs(*pull, "--revision", pushed["commit"]).code == 0


def test_another_base_than_it_was_pushed_for(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    done(verbs("push", "legal@v1", "acme/legal", "--store", store.path, "--json"))
    other = make_base(tmp_path / "other", seed=5)
    pull = ("pull", "acme/legal", "mine", "--base", other, "--store", there.path)
    refused(verbs(*pull), 2, "was trained on", "--allow-base-mismatch")
    assert verbs(*pull, "--allow-base-mismatch").code == 0
    assert there.resolve("mine@v1").base_mismatch is True  # type: ignore[union-attr]


def test_a_foreign_inlay_json_is_no_claim(hub: Hub, verbs: Runner, there: Registry, small: Path) -> None:
    texts = [b"[]", b"{", b'{"schema": 1, "ref": "x@v1", "manifest": [1]}', b"[" * 100_000, b'{"schema": 2}']
    for seed, text in enumerate(texts):
        hub.seed("org/lora", adapter_files(seed) | {"inlay.json": text})
        ran = verbs("pull", "org/lora", "x", "--base", small, "--store", there.path, "--json")
        assert "pushed" not in ran.result["hub"]
        assert ran.result["ref"] == f"x@v{seed + 1}"


def test_what_may_not_be_pushed(
    hub: Hub, verbs: Runner, store: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    store.yank("legal@v1", why="bad")
    refused(verbs("push", "legal@v1", "acme/legal", "--store", store.path), 2, "legal@v1 is yanked")
    refused(verbs("push", "legal@v2", "acme/legal", "--store", store.path), 2, "legal")
    for repo in ("legal", "../legal", "a/b/c", "acme/le--gal"):
        refused(verbs("push", "legal@v1", repo, "--store", store.path), 2, "owner/name")
    assert hub.requests == []


# The hub says no


def test_the_hubs_refusals_are_one_line_each(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    hub.seed("org/lora", adapter_files())
    push = ("push", "legal@v1", "acme/legal", "--store", store.path)
    pull = ("pull", "org/lora", "x", "--base", small, "--store", there.path)

    refused(verbs("pull", "org/none", "x", "--base", small, "--store", there.path), 2, "no such repository")
    refused(verbs(*pull, "--revision", "v9"), 2, "no such revision")
    hub.faults.status = {"/api/models/": 500}
    refused(verbs(*pull), 3, "the hub answered 500", "a fault on request", "try again")
    hub.faults.status = {"/api/repos/create": 500}
    refused(verbs(*push), 3, "the hub answered 500")
    hub.faults.status = {"/commit/": 412}
    refused(verbs(*push), 3, "at the same time")
    hub.faults.status = {}
    hub.may_write = False
    refused(verbs("push", "legal@v1", "acme/other", "--store", store.path), 2, "403", "right")
    answer = verbs(*pull, "--revision", "v9", "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["error"]["type"] == "InputError"
    assert there.names() == []


def test_a_private_repository_and_a_branch(
    hub: Hub, verbs: Runner, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    asked = ("--private", "--revision", "next", "--message", "a message")
    done(verbs("push", "legal@v1", "acme/secret", "--store", store.path, "--json", *asked))
    repo = hub.repos["acme/secret"]
    assert repo.private is True
    assert WEIGHTS in hub.head("acme/secret", "next") and WEIGHTS not in hub.head("acme/secret", "main")
    pull = ("pull", "acme/secret", "x", "--base", small, "--store", there.path)
    refused(verbs(*pull), 2, "an adapter needs adapter_config.json")
    assert verbs(*pull, "--revision", "next").code == 0


def test_what_somebody_else_committed_meanwhile_stays(
    hub: Hub, verbs: Runner, store: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    hub.seed("acme/legal", {"README.md": b"theirs"})
    hub.faults.meanwhile["/preupload/"] = lambda: hub.seed("acme/legal", {"README.md": b"theirs, newer"})
    push = ("push", "legal@v1", "acme/legal", "--store", store.path)
    refused(verbs(*push), 3, "412", "at the same time, try again")
    assert hub.head("acme/legal") == {"README.md": b"theirs, newer"}
    assert verbs(*push).code == 0
    assert WEIGHTS in hub.head("acme/legal")


@pytest.mark.slow
def test_no_token_no_network_and_offline(
    hub: Hub, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    hub.seed("org/lora", adapter_files())
    push = ("push", "legal@v1", "acme/legal", "--store", store.path)
    pull = ("pull", "org/lora", "x", "--base", small, "--store", there.path)
    with runner(environment(hub, tmp_path, HF_TOKEN="")) as stranger:
        refused(stranger(*push), 2, "401", "hf auth login")
        assert stranger(*pull).code == 0, "what is public needs no token"
    with runner(environment(hub, tmp_path, HF_HUB_OFFLINE="1")) as offline:
        refused(offline(*push), 2, "HF_HUB_OFFLINE")
        refused(offline(*pull), 2, "HF_HUB_OFFLINE")
    with runner(environment(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")) as alone:
        refused(alone(*push), 3, "cannot be reached")
        refused(alone(*pull), 3, "cannot be reached")


@pytest.mark.slow
def test_the_token_is_seen_nowhere(
    hub: Hub, store: Registry, there: Registry, small: Path, tmp_path: Path
) -> None:
    store.add("legal", make_adapter(tmp_path / "a"), base=small)
    wrong = "hf_WrongButSecretAllTheSame4567"
    said: list[str] = []
    for token in (TOKEN, wrong):
        env = environment(hub, tmp_path, HF_TOKEN=token, INLAY_TRACEBACK="1")
        for arguments in (
            ("push", "legal@v1", "acme/legal", "--store", store.path, "--json"),
            ("push", "legal@v1", "acme/legal", "--store", store.path),
            ("pull", "acme/legal", "x", "--base", small, "--store", there.path, "--json"),
            ("pull", "acme/none", "x", "--base", small, "--store", there.path),
        ):
            ran = run_alone(env, *arguments)
            said += [ran.out, ran.err]
            if token == wrong:  # the hub repeats the token in its answer
                assert ran.code == 2, ran.err
    hub.faults.status = {"/api/": 500}
    for verb in (
        ("push", "legal@v1", "acme/legal", "--store", store.path),
        ("pull", "acme/legal", "y", "--base", small, "--store", there.path, "--json"),
    ):
        ran = run_alone(environment(hub, tmp_path), *verb)
        said += [ran.out, ran.err]
        assert ran.code == 3 and "a fault on request of Bearer" in said[-1] + said[-2]
    assert hub.seen("GET", "/resolve/") and hub.seen("PUT", "/upload/")
    assert any(TOKEN in r.headers.get("authorization", "") for r in hub.requests), "it was used"
    assert not [
        r for r in hub.requests if r.path.startswith(("/object/", "/upload/")) and TOKEN in str(r.headers)
    ]
    for token in (TOKEN, wrong):
        assert token not in "".join(said)
        for path in (p for p in tmp_path.rglob("*") if p.is_file()):
            assert token.encode() not in path.read_bytes(), path
        for name in hub.repos:
            assert token.encode() not in b"".join(hub.head(name).values())


# Bases


@pytest.mark.slow
def test_a_base_from_the_hub_is_pinned_to_its_commit(
    hub: Hub, there: Registry, small: Path, tmp_path: Path
) -> None:
    files = {p.name: p.read_bytes() for p in small.iterdir()} | {"model.bin": b"\x80", "code.py": b"raise"}
    commit = hub.seed("org/base", files)
    adapter = make_adapter(tmp_path / "a")
    with runner(environment(hub, tmp_path)) as verbs:
        ran = verbs("add", "x", adapter, "--base", "org/base", "--store", there.path, "--json")
    assert ran.code == 0, ran.err
    base: Any = there.resolve("x@v1").base
    assert (base.name, base.source, base.revision) == ("org/base", "org/base", commit)
    asked_for = {r.path.rpartition("/")[2] for r in hub.requests if "/resolve/" in r.path}
    assert asked_for == {"config.json", "tokenizer.json", "model.safetensors"}, "no pickle, no code"


def test_what_is_meant_as_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    meant = ["org/lora", "Org-1/lo.ra_2"]
    paths = ["lora", "./lora", "out/lora", "/org/lora", "a/b/c", "org/../x", "~/lora", "org/lo--ra", "org/"]
    assert [text for text in meant + paths if names_repo(text)] == meant


def test_add_takes_a_repository_where_no_such_folder_is(
    hub: Hub, verbs: Runner, there: Registry, small: Path
) -> None:
    commit = hub.seed("acme/legal", adapter_files())
    added = done(
        verbs(
            "add", "legal", "acme/legal", "--base", small, "--tag", "pilot", "--store", there.path, "--json"
        )
    )
    assert added["lineage"]["hub"]["commit"] == commit
    assert there.about("legal").versions[1].tags == ("pilot",)
