"""References for vLLM, without vLLM: what the middleware writes, the resolver answers, and lies where."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from serving_fakes import write_adapter

import inlay
from inlay.builtin import base_path
from inlay.composer.lint import VLLM_RANKS
from inlay.errors import InputError, StoreBusy
from inlay.evals.inference import Base
from inlay.registry import Registry, Version
from inlay.serving import vllm
from inlay.serving.exports import Exports
from inlay.serving.pins import Pins

BASE = str(base_path())


@dataclass
class LoRARequest:
    """vLLM's, as far as a resolver sees it."""

    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Resolvers:
    """vLLM's registry of resolvers."""

    resolvers: dict[str, Any] = field(default_factory=dict)

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, name: str, resolver: Any) -> None:
        assert name not in self.resolvers, "vLLM warns when a name is registered again"
        self.resolvers[name] = resolver


@dataclass
class Models:
    """vLLM's OpenAIServingModels.resolve_lora (0.32): a name that was resolved is never asked for again."""

    resolver: vllm.Resolver
    lora_requests: dict[str, Any] = field(default_factory=dict)

    def is_base_model(self, name: str) -> bool:
        return name == "the-base"

    async def resolve_lora(self, name: str) -> Any:
        if name not in self.lora_requests:
            found = await self.resolver.resolve_lora(BASE, name)
            if found is None:
                return None
            found.lora_int_id = len(self.lora_requests) + 1
            self.lora_requests[name] = found
        return self.lora_requests[name]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of vLLM that are imported, and a fresh set of pins."""
    envs = SimpleNamespace(VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, VLLM_SKIP_MODEL_NAME_VALIDATION=False)
    resolvers = Resolvers()
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"envs": envs},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolverRegistry": resolvers},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    vllm.pins.cache_clear()
    yield SimpleNamespace(envs=envs, resolvers=resolvers)
    vllm.pins.cache_clear()


@pytest.fixture
def filled(
    store: Registry, base: Base, tmp_path: Path, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """Two versions of `legal`, the first at @prod, and a variant of it."""
    for seed in (1, 2):
        folder = write_adapter(tmp_path / f"legal-{seed}", base, seed=seed)
        store.add("legal", folder, base=base.fingerprint)
    store.promote("legal@v1", "prod")
    store.lock("acme", {"stack": [{"use": "legal@v1", "weight": 0.5}, "legal@v2"]})
    monkeypatch.setenv("INLAY_STORE", str(store.path))
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    return store


def pinned(store: Registry, ref: str) -> str:
    target = store.resolve(ref)
    return f"{target.name}@{target.digest}"


def resolve(name: str, *, rank: int = 16, base: str = BASE, resolver: Any = None) -> LoRARequest | None:
    """What the resolver answers a server that was started with this --max-lora-rank."""
    config = SimpleNamespace(
        lora_config=SimpleNamespace(max_lora_rank=rank), model_config=SimpleNamespace(revision=None)
    )
    token = vllm._STATE.set(SimpleNamespace(vllm_config=config))
    try:
        return asyncio.run((resolver or vllm.Resolver(vllm.pins)).resolve_lora(base, name))
    finally:
        vllm._STATE.reset(token)


def refusal(name: str, **settings: Any) -> HTTPException:
    with pytest.raises(HTTPException) as refused:
        resolve(name, **settings)
    return refused.value


# Pins


def test_a_reference_means_what_the_registry_says_now(filled: Registry) -> None:
    pins = Pins(filled.path)
    first, second = filled.resolve("legal@v1"), filled.resolve("legal@v2")

    for ref in ("legal", "legal@prod", "legal@v1", first.digest, f"legal@{first.digest[:20]}"):
        found = pins.of(ref)
        assert found is not None and found.name == f"legal@{first.digest}", ref

    filled.promote("legal@v2", "prod")  # through another connection
    found = pins.of("legal@prod")
    assert found is not None and found.name == f"legal@{second.digest}"
    filled.rollback("legal@prod", why="worse")
    found = pins.of("legal@prod")
    assert found is not None and found.name == f"legal@{first.digest}"
    for nothing in ("nobody", "legal@staging", "legal@v9", "Not A Reference", "", "legal@", "x" * 9000):
        assert pins.of(nothing) is None, nothing


def test_what_was_yanked_is_refused_under_each_of_its_names(filled: Registry) -> None:
    pins = Pins(filled.path)
    filled.promote("legal@v2", "prod")
    filled.promote("legal@v2", "canary")
    names = ("legal@canary", "legal@v2", pinned(filled, "legal@v2"))
    assert [pins.of(name).refused for name in names] == [None] * 3

    filled.yank("legal@v2", why="it leaks", otherwise="disable")

    assert pins.of("legal@canary") is None, "nothing earlier to go back to: it was disabled"
    for name in names[1:]:
        found = pins.of(name)
        assert found is not None and found.refused == "legal@v2 was yanked; `inlay log legal` says why"
    found = pins.of("legal@prod")
    assert found is not None and found.target.ref == "legal@v1" and found.refused is None
    filled.retire("acme@v1", why="nobody used it")
    assert pins.of("acme@v1").refused == "acme@v1 was retired; `inlay log acme` says why"


def test_while_the_store_is_gone_references_mean_what_they_meant(
    filled: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    pins = Pins(filled.path)
    known = pins.of("legal@prod")
    away = filled.path.rename(filled.path.with_name("away"))

    with caplog.at_level("INFO", logger="vllm.inlay"):
        assert pins.of("legal@prod") == known
        assert pins.of("legal@prod") == known
        with pytest.raises(StoreBusy, match="cannot be read now"):
            pins.of("legal@v2")
        away.rename(filled.path)
        assert pins.of("legal@v2") is not None

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and "names mean what they meant" in said[0] and "again" in said[1]


def test_a_store_that_another_took_the_place_of_is_opened_anew(filled: Registry, tmp_path: Path) -> None:
    """As rsync does, and a backup that is put back: the file that was open stays what it was."""
    pins = Pins(filled.path)
    assert pins.of("legal@prod").target.ref == "legal@v1"
    with inlay.Registry.open(shutil.copytree(filled.path, tmp_path / "copy")) as copy:
        copy.promote("legal@v2", "prod")
    filled.path.rename(tmp_path / "old")
    (tmp_path / "copy").rename(filled.path)
    assert pins.of("legal@prod").target.ref == "legal@v2"


def test_a_store_that_bundles_keep_up_follows_the_one_that_writes(filled: Registry, tmp_path: Path) -> None:
    """Another machine: the pins of its own store move when the journal's rows arrive, and not before."""
    filled.promote("legal@v2", "prod")
    filled.bundle(tmp_path / "1.bundle")
    with inlay.Registry.open(tmp_path / "mirror", create=True) as mirror:
        mirror.unbundle(tmp_path / "1.bundle")
        pins = Pins(mirror.path)
        assert pins.of("legal@prod").target.ref == "legal@v2"
        filled.rollback("legal@prod", why="worse")
        filled.yank("acme@v1", why="worse")
        assert pins.of("legal@prod").target.ref == "legal@v2"
        filled.bundle(tmp_path / "2.bundle")
        mirror.unbundle(tmp_path / "2.bundle")
        assert pins.of("legal@prod").target.ref == "legal@v1"
        assert pins.of("acme@v1").refused


# Exports


def test_an_adapter_is_exported_once_and_whole(filled: Registry, tmp_path: Path) -> None:
    exports = Exports(tmp_path / "made", "vllm")
    target = filled.resolve("acme@v1")
    assert exports.made(target.digest) is None

    folders: list[Path] = []
    barrier = threading.Barrier(4)

    def make() -> None:
        barrier.wait()
        folders.append(exports.make(target, filled))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    folder = tmp_path / "made" / target.digest.removeprefix("sha256:")
    assert folders == [folder] * 4 and exports.made(target.digest) == folder
    assert list(folder.parent.iterdir()) == [folder], "nothing is left of those that came second"
    inlay.export(target, tmp_path / "plain", store=filled, engine="vllm")
    for file in (tmp_path / "plain").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    before = (folder / "adapter_model.safetensors").stat().st_ino
    assert exports.make(target, filled) == folder
    assert (folder / "adapter_model.safetensors").stat().st_ino == before


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "inlay.json"])
def test_an_exported_adapter_that_changed_is_made_again(filled: Registry, tmp_path: Path, file: str) -> None:
    exports = Exports(tmp_path / "made", "vllm")
    target = filled.resolve("legal@v1")
    folder = exports.make(target, filled)
    right = (folder / file).read_bytes()
    (folder / file).write_bytes(right[:-9])

    assert exports.made(target.digest) is None
    assert exports.make(target, filled) == folder
    assert (folder / file).read_bytes() == right
    assert list(folder.parent.iterdir()) == [folder]


# The resolver


def test_a_pinned_name_becomes_an_adapter_whose_name_and_path_have_the_digest(filled: Registry) -> None:
    for ref in ("legal@v1", "legal@v2", "acme@v1"):
        name, digest = pinned(filled, ref), filled.resolve(ref).digest.removeprefix("sha256:")
        found = resolve(name)
        assert found is not None and found.lora_name == name and digest in name
        assert Path(found.lora_path).name == digest and found.lora_int_id > 0
        config = json.loads((Path(found.lora_path) / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == (8 if ref == "acme@v1" else 4)
    for nothing in ("nobody", "nobody@prod", f"legal@sha256:{'0' * 64}", "no reference"):
        assert resolve(nothing) is None, nothing


def test_a_name_that_moves_is_not_given_to_vllm(filled: Registry) -> None:
    for name in ("legal", "legal@prod", "legal@v1", filled.resolve("legal@v1").digest):
        refused = refusal(name)
        assert refused.status_code == 400
        assert "--middleware inlay.serving.vllm.Pinned" in refused.detail
        assert pinned(filled, "legal@v1") in refused.detail


def test_what_vllm_cannot_run_is_refused_by_reason(filled: Registry, base: Base, tmp_path: Path) -> None:
    filled.lock("tokens", {"route": {"by": "arrow", "experts": ["legal@v1", "legal@v2"]}})
    wide = write_adapter(tmp_path / "wide", base, seed=3, rank=24)
    filled.add("wide", wide, base=base.fingerprint)
    filled.add("scales", ia3(tmp_path / "scales", base), base=base.fingerprint)

    refused = refusal(pinned(filled, "tokens@v1"))
    assert refused.status_code == 400 and "tokens@v1 routes at the root" in refused.detail
    refused = refusal(pinned(filled, "wide@v1"))
    assert refused.status_code == 400
    assert "wide@v1 has rank 24, and this vLLM takes 16 at most" in refused.detail
    assert "--max-lora-rank 32" in refused.detail and 32 in VLLM_RANKS
    assert resolve(pinned(filled, "wide@v1"), rank=32) is not None
    refused = refusal(pinned(filled, "scales@v1"))
    assert refused.status_code == 400 and "scales@v1" in refused.detail


def ia3(folder: Path, base: Base) -> Path:
    """An adapter that scales what a layer gives: it has no factors."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    model.save_pretrained(folder)
    model.unload()
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def test_yanked_after_it_was_exported_is_refused(filled: Registry) -> None:
    name = pinned(filled, "legal@v2")
    assert resolve(name) is not None
    filled.yank("legal@v2", why="it leaks")
    refused = refusal(name)
    assert refused.status_code == 400 and "legal@v2 was yanked" in refused.detail


def test_another_base_is_refused(filled: Registry, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(BASE, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.ones(1)}, other / "model.safetensors")
    refused = refusal(pinned(filled, "legal@v1"), base=str(other))
    assert refused.status_code == 400
    assert "legal@v1 was made for the base" in refused.detail and "start vLLM with" in refused.detail

    prompts = shutil.copytree(BASE, tmp_path / "prompts")
    (prompts / "chat_template.jinja").write_text("{{ messages }}")
    refused = refusal(pinned(filled, "legal@v1"), base=str(prompts))
    assert refused.status_code == 400 and "another tokenizer or chat template" in refused.detail


def test_without_the_store_what_was_exported_goes_on(filled: Registry) -> None:
    resolver = vllm.Resolver(vllm.pins)
    known, other = pinned(filled, "legal@v1"), pinned(filled, "legal@v2")
    assert resolve(known, resolver=resolver) is not None
    assert vllm.pins().of(other) is not None
    away = filled.path.rename(filled.path.with_name("away"))
    assert resolve(known, resolver=resolver) is not None
    assert refusal(other, resolver=resolver).status_code == 503, "known, and its bytes are out of reach"
    assert refusal("legal@v2", resolver=resolver).status_code == 503
    away.rename(filled.path)
    assert resolve(other, resolver=resolver) is not None


def test_bytes_that_changed_are_no_adapter(filled: Registry) -> None:
    version = filled.resolve("legal@v1")
    assert isinstance(version, Version)
    file = (version.path / "adapter_model.safetensors").resolve()
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    refused = refusal(pinned(filled, "legal@v1"))
    assert refused.status_code == 500 and "adapter_model.safetensors" in refused.detail


# The plugin and the middleware


def test_the_plugin_is_registered_once_and_only_where_a_store_is_named(
    engine: SimpleNamespace, filled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["inlay"].partition(":")
    plugin = getattr(importlib.import_module(module), function)
    monkeypatch.delenv("INLAY_STORE")
    plugin()
    assert not engine.resolvers.resolvers
    monkeypatch.setenv("INLAY_STORE", str(filled.path))
    plugin()
    plugin()
    assert isinstance(engine.resolvers.resolvers["inlay"], vllm.Resolver)


@dataclass
class Server:
    """What stands behind the middleware: answers with the path that vLLM would compute with."""

    models: Models
    seen: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        status, content = 200, {}
        if headers.get(b"authorization") == b"wrong":
            status = 401
        else:
            body = b""
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                body += message["body"]
                if not message.get("more_body"):
                    break
            self.seen.append(body)
            try:
                model = json.loads(body)["model"]
            except (ValueError, KeyError, TypeError, RecursionError):
                status = 400
            else:
                if not self.models.is_base_model(model):
                    try:
                        lora = await self.models.resolve_lora(model)
                    except HTTPException as error:
                        status, content = error.status_code, {"error": error.detail}
                    else:
                        status = 200 if lora else 404
                        content = {"model": model, "path": lora and lora.lora_path}
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-other", b"1")]})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})


@dataclass
class Door:
    """A client's side of the middleware, and how often a body was read."""

    server: Server
    reads: int = 0

    def post(
        self, body: Any, *, path: str = "/v1/completions", pieces: int = 1, **headers: str
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        """(status, headers, body) of a request whose body comes in so many pieces."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = len(raw) // pieces + 1
        messages = [
            {"type": "http.request", "body": raw[i * size : (i + 1) * size], "more_body": i < pieces - 1}
            for i in range(pieces)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            self.reads += 1
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        state = SimpleNamespace(openai_serving_models=self.server.models, vllm_config=None)
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "root_path": "",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
            "app": SimpleNamespace(state=state),
        }
        asyncio.run(vllm.Pinned(self.server)(scope, receive, send))
        told = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], told, json.loads(sent[1]["body"])


@pytest.fixture
def door(filled: Registry) -> Door:
    return Door(Server(Models(vllm.Resolver(vllm.pins))))


def test_a_rollback_reaches_the_next_request(filled: Registry, door: Door) -> None:
    first, second = filled.resolve("legal@v1"), filled.resolve("legal@v2")
    for target, move in (
        (first, None),
        (second, lambda: filled.promote("legal@v2", "prod")),
        (first, lambda: filled.rollback("legal@prod", why="worse")),
        (second, lambda: filled.promote("legal@v2", "prod")),
        (first, lambda: filled.yank("legal@v2", why="it leaks")),
    ):
        if move is not None:
            move()
        status, headers, answer = door.post({"model": "legal@prod"})
        assert status == 200 and answer["model"] == f"legal@{target.digest}"
        assert Path(answer["path"]).name == target.digest.removeprefix("sha256:")
        assert headers == {"x-other": "1", "x-inlay-ref": target.ref, "x-inlay-digest": target.digest}
    assert set(door.server.models.lora_requests) == {f"legal@{first.digest}", f"legal@{second.digest}"}


def test_what_vllm_keeps_and_the_registry_yanked_is_refused(filled: Registry, door: Door) -> None:
    name = pinned(filled, "legal@v2")
    assert door.post({"model": name})[0] == 200 and name in door.server.models.lora_requests
    filled.yank("legal@v2", why="it leaks")
    for ref in (name, "legal@v2", filled.resolve("legal@v2").digest):
        status, headers, answer = door.post({"model": ref})
        assert status == 400 and "legal@v2 was yanked" in answer["error"], ref
        assert "x-inlay-digest" not in headers


def test_only_the_model_of_a_request_changes(filled: Registry, door: Door) -> None:
    request = {
        "model": "legal@prod",
        "messages": [{"role": "user", "content": "größer 😀 \ud800"}],
        "seed": 2**70,
        "temperature": 0.1,
        "top_p": float("inf"),
        "model_kwargs": {"model": "legal@prod"},
    }
    status, _, _ = door.post(request, pieces=7)
    assert status == 200
    assert json.loads(door.server.seen[-1]) == {**request, "model": pinned(filled, "legal@v1")}


def test_what_is_no_reference_reaches_vllm_as_it_came(filled: Registry, door: Door) -> None:
    door.server.models.lora_requests["legal"] = LoRARequest("legal", 9, "/given/with/--lora-modules")
    kept = [
        ({"model": "the-base"}, 200),
        ({"model": "legal"}, 200),
        ({"model": "nobody@prod"}, 404),
        ({"model": None}, 400),
        ({"prompt": "no model"}, 400),
        ([1], 400),
        (b"{not json", 400),
        (b"\xff\xfe\x00", 400),
        (b"[" * 100_000, 400),
        (b"", 400),
    ]
    door.server.models.resolve_lora = resolve_only_names(door.server.models)  # type: ignore[method-assign]
    for body, expected in kept:
        raw = body if isinstance(body, bytes) else b" " + json.dumps(body).encode()
        status, headers, _ = door.post(raw)
        assert status == expected, body
        assert door.server.seen[-1] == raw and "x-inlay-ref" not in headers


def resolve_only_names(models: Models) -> Any:
    """vLLM's pydantic refuses a model that is no text before anybody resolves it."""
    inner = models.resolve_lora

    async def resolve(name: Any) -> Any:
        if not isinstance(name, str):
            raise HTTPException(400, "model must be a text")
        return await inner(name)

    return resolve


def test_a_body_is_read_after_the_key_was_checked(filled: Registry, door: Door) -> None:
    assert door.post({"model": "legal@prod"}, authorization="wrong")[0] == 401
    assert door.reads == 0 and not door.server.seen


def test_clients_cannot_put_other_bytes_under_a_name(filled: Registry, door: Door) -> None:
    body = {"lora_name": pinned(filled, "legal@v1"), "lora_path": "/elsewhere", "load_inplace": True}
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/legal"):
        status, _, answer = door.post(body, path=path)
        assert status == 404 and answer["error"]["code"] == 404
    assert not door.server.seen


def test_bodies_that_do_not_name_the_adapter_are_left_alone(filled: Registry, door: Door) -> None:
    """A form with a file, which is not held in memory; and SageMaker's address, where a header names it."""
    door.post(b"--x\r\n", pieces=3, content_type="Multipart/form-data; boundary=x")
    assert door.server.seen == [b"--x\r\n"] and door.reads == 3
    status, headers, answer = door.post({"model": "legal@prod"}, path="/invocations")
    assert status == 400 and "Pinned" in answer["error"] and "x-inlay-ref" not in headers


def test_a_server_that_would_never_ask_does_not_start(
    filled: Registry, engine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Server(Models(vllm.Resolver(vllm.pins)))
    engine.envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING = False
    with pytest.raises(InputError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        vllm.Pinned(app)
    engine.envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING = True
    engine.envs.VLLM_SKIP_MODEL_NAME_VALIDATION = True
    with pytest.raises(InputError, match="unset VLLM_SKIP_MODEL_NAME_VALIDATION"):
        vllm.Pinned(app)
    engine.envs.VLLM_SKIP_MODEL_NAME_VALIDATION = False
    monkeypatch.setenv("INLAY_STORE", str(filled.path / "nowhere"))
    with pytest.raises(InputError, match="there is no registry"):
        vllm.Pinned(app)
    monkeypatch.delenv("INLAY_STORE")
    with pytest.raises(InputError, match="set INLAY_STORE"):
        vllm.Pinned(app)
