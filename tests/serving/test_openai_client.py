"""The official `openai` client, unchanged, against the whole server on the built-in base; and, where a server
must misbehave, against a scripted one. Greedy answers are those of `inlay.compose`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from api_fakes import Fakes, Parts, Script, fake_app, listening, real_server, soon
from openai import AsyncOpenAI, OpenAI
from serving_fakes import PROMPTS, put_adapters

import inlay
from inlay.builtin import base_path
from inlay.evals.inference import Base, encode_prompt, load_base
from inlay.registry import Registry

TOKENS = 16
MODELS = ("acme", "blunt@v1", "warm@prod", "base")


@pytest.fixture(scope="module")
def filled(shared_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """blunt, warm and cool, random adapters of strong effect, and acme, a stack of two."""
    folder = tmp_path_factory.mktemp("served")
    with Registry.open(folder / "adapters_store", create=True) as store:
        put_adapters(store, shared_base, folder, ["blunt", "warm", "cool"])
        store.promote("warm@v1", "prod", why="the only one")
        store.lock("acme", {"stack": ["blunt@v1", {"use": "warm@v1", "weight": 0.5}]})
        store.promote("acme@v1", "prod", why="the only one")
        yield store


@pytest.fixture(scope="module")
def greedy(filled: Registry, shared_base: Base) -> dict[tuple[str, str], str]:
    """What composed models answer, by (model, prompt)."""
    found = {}
    for model in MODELS[:-1]:
        composed = inlay.compose(model, store=filled, base=shared_base)
        texts = composed.generate(list(PROMPTS), max_new_tokens=TOKENS)
        found.update({(model, prompt): text for prompt, text in zip(PROMPTS, texts, strict=True)})
        bare = composed.base_chat.generate(list(PROMPTS), max_new_tokens=TOKENS)
        found.update({("base", prompt): text for prompt, text in zip(PROMPTS, bare, strict=True)})
        composed.detach()
    assert len({found[model, PROMPTS[0]] for model in MODELS}) == len(MODELS), "the adapters must show"
    return found


@pytest.fixture(scope="module")
def served(filled: Registry, shared_base: Base, greedy: Any) -> Iterator[Parts]:
    with real_server(shared_base, filled, splits=["front=blunt@v1:50,warm@v1:50"]) as parts:
        yield parts


@pytest.fixture
def client(served: Parts) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
        yield client
    assert soon(lambda: served.scheduler.running == served.scheduler.waiting == 0)
    assert soon(lambda: not any(map(served.shelf.uses, served.shelf.loaded()))), (
        "something was not given back"
    )
    assert '"level": "error"' not in served.stream.getvalue()


@pytest.fixture
def fakes(base: Base) -> Iterator[tuple[Fakes, OpenAI]]:
    fakes = fake_app(base, timeout=1.0)
    with (
        listening(fakes.app) as url,
        OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client,
    ):
        yield fakes, client
    assert fakes.out == 0


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("model", MODELS)
def test_greedy_answers_are_the_composed_models(
    client: OpenAI, greedy: dict[tuple[str, str], str], filled: Registry, shared_base: Base, model: str
) -> None:
    for prompt in PROMPTS[:4]:
        answer = client.chat.completions.create(
            model=model, messages=user(prompt), temperature=0, max_tokens=TOKENS
        )
        assert (answer.choices[0].message.content or "").strip() == greedy[model, prompt]
        wanted = shared_base.fingerprint.weights if model == "base" else filled.resolve(model).digest
        assert answer.system_fingerprint == wanted and answer.model == model
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(encode_prompt(shared_base.tokenizer, prompt))
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streams_of_several_variants_at_once(served: Parts, greedy: dict[tuple[str, str], str]) -> None:
    async def one(client: AsyncOpenAI, model: str, prompt: str) -> tuple[str, str, str]:
        stream = await client.chat.completions.create(
            model=model, messages=user(prompt), temperature=0, max_completion_tokens=TOKENS, stream=True
        )
        text, fingerprints = "", set()
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            fingerprints.add(chunk.system_fingerprint)
        assert len(fingerprints) == 1
        return model, prompt, text.strip()

    async def all_of_them() -> list[tuple[str, str, str]]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
            return await asyncio.gather(*(one(client, m, p) for m in MODELS for p in PROMPTS))

    answers = asyncio.run(all_of_them())
    assert len(answers) == len(MODELS) * len(PROMPTS)
    for model, prompt, text in answers:
        assert text == greedy[model, prompt], model


def test_the_clients_own_way_of_streaming(client: OpenAI, greedy: dict[tuple[str, str], str]) -> None:
    with client.chat.completions.stream(
        model="acme",
        messages=user(PROMPTS[0]),
        temperature=0,
        max_tokens=TOKENS,
        stream_options={"include_usage": True},
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.current_completion_snapshot
    assert kinds[0] == "chunk" and "content.delta" in kinds and kinds[-1] == "chunk"
    assert (final.choices[0].message.content or "").strip() == greedy["acme", PROMPTS[0]]
    assert final.usage is not None and final.usage.completion_tokens > 0


def test_each_answer_names_what_gave_it(client: OpenAI, filled: Registry) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="acme", messages=user("hello"), max_tokens=2, temperature=0
    )
    assert raw.headers["x-inlay-ref"] == "acme@v1"
    assert raw.headers["x-inlay-digest"] == filled.resolve("acme").digest == raw.parse().system_fingerprint
    assert raw.request_id == raw.headers["x-request-id"] == raw.parse()._request_id
    with client.chat.completions.with_streaming_response.create(
        model="front", messages=user("hello"), max_tokens=2, stream=True, user="somebody"
    ) as stream:
        arm = stream.headers["x-inlay-arm"]
        assert arm in ("blunt@v1", "warm@v1") and stream.headers["x-inlay-ref"] == arm


def test_log_probabilities_are_the_models(client: OpenAI, shared_base: Base, served: Parts) -> None:
    answer = client.chat.completions.create(
        model="base", messages=user(PROMPTS[0]), temperature=0, max_tokens=5, logprobs=True, top_logprobs=4
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    ids = encode_prompt(shared_base.tokenizer, PROMPTS[0])

    def oracle(row: list[int]) -> torch.Tensor:
        with torch.inference_mode(), served.scheduler.bank.gate.held_at(None):
            return shared_base.model(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1)

    for token in logprobs.content:
        wanted = served.scheduler.between_steps(lambda row=list(ids): oracle(row)).result()
        values, places = wanted.topk(4)
        assert token.logprob == pytest.approx(float(values[0]), abs=1e-4)
        assert [other.logprob for other in token.top_logprobs] == pytest.approx(values.tolist(), abs=1e-4)
        assert token.token == token.top_logprobs[0].token and bytes(token.bytes or ()).decode() == token.token
        ids.append(int(places[0]))
    spelled = "".join(token.token for token in logprobs.content).strip()
    assert spelled.replace("\u2060 ", "") == (answer.choices[0].message.content or "").strip()


def test_completions_go_on_from_text_and_tokens(client: OpenAI, shared_base: Base) -> None:
    ids = encode_prompt(shared_base.tokenizer, PROMPTS[0])
    chat = client.chat.completions.create(
        model="acme", messages=user(PROMPTS[0]), temperature=0, max_tokens=8
    )
    text = client.completions.create(
        model="acme", prompt=[ids, ids[:-1]], temperature=0, max_tokens=8, logprobs=3
    )
    first, second = text.choices
    assert first.text == chat.choices[0].message.content and first.text != second.text
    assert first.logprobs is not None and first.logprobs.tokens and first.logprobs.token_logprobs
    assert all(len(top) <= 3 for top in first.logprobs.top_logprobs or [])
    assert all(math.isfinite(value) for value in first.logprobs.token_logprobs)
    pieces = list(
        client.completions.create(model="acme", prompt="the river", temperature=0, max_tokens=8, stream=True)
    )
    whole = client.completions.create(model="acme", prompt="the river", temperature=0, max_tokens=8)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_seeds_stops_and_choices(client: OpenAI, greedy: dict[tuple[str, str], str]) -> None:
    def drawn(**more: Any) -> list[str]:
        answer = client.chat.completions.create(
            model="warm", messages=user(PROMPTS[1]), max_tokens=TOKENS, temperature=1.2, **more
        )
        return [choice.message.content or "" for choice in answer.choices]

    assert drawn(seed=5, n=3) == drawn(seed=5, n=3)
    assert drawn(seed=-(2**63)) == drawn(seed=-(2**63)) and drawn(seed=2**63 - 1, n=2)
    assert len(set(drawn(seed=5, n=3))) == 3 and drawn(seed=5) == drawn(seed=5, n=2)[:1] != drawn(seed=6)
    whole = greedy["base", PROMPTS[2]]
    stop = whole[3:6]
    answer = client.chat.completions.create(
        model="base", messages=user(PROMPTS[2]), temperature=0, max_tokens=TOKENS, stop=[stop, "never said"]
    )
    assert (answer.choices[0].message.content or "").strip() == whole[: whole.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"


def test_a_prompt_that_was_read_is_not_read_again(client: OpenAI) -> None:
    def cached() -> int:
        answer = client.chat.completions.create(
            model="blunt@v1", messages=user("Read this once. " * 12), temperature=0, max_tokens=4
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0 < cached()


def test_weights_of_a_request(client: OpenAI, greedy: dict[tuple[str, str], str]) -> None:
    def weighed(weights: dict[str, float]) -> str:
        answer = client.chat.completions.create(
            model="acme",
            messages=user(PROMPTS[0]),
            temperature=0,
            max_tokens=TOKENS,
            extra_body={"inlay": {"weights": weights}},
        )
        return (answer.choices[0].message.content or "").strip()

    assert weighed({}) == greedy["base", PROMPTS[0]]
    assert weighed({"blunt@v1": 1.0}) == greedy["blunt@v1", PROMPTS[0]]
    assert weighed({"blunt@v1": 1.0, "warm@v1": 0.5}) == greedy["acme", PROMPTS[0]]
    with pytest.raises(openai.BadRequestError, match="members of acme@v1"):
        weighed({"cool@v1": 1.0})
    with pytest.raises(openai.BadRequestError, match="overflow"):
        weighed({"blunt@v1": 3e38})
    with pytest.raises(openai.BadRequestError, match="route goes by request"):
        client.chat.completions.create(
            model="acme", messages=user("hello"), extra_body={"inlay": {"expert": "blunt@v1"}}
        )


def test_a_promote_reaches_the_next_request(client: OpenAI, filled: Registry) -> None:
    def digest() -> str | None:
        answer = client.chat.completions.create(model="warm", messages=user("hello"), max_tokens=1)
        return answer.system_fingerprint

    before = digest()
    filled.promote("cool@v1", "staging", why="another name's alias moves nothing")
    assert before == filled.resolve("warm").digest == digest()
    filled.lock("warm-both", {"stack": ["warm@v1", "cool@v1"]})
    filled.promote("warm-both@v1", "prod", why="new")
    answer = client.chat.completions.create(model="warm-both", messages=user("hello"), max_tokens=1)
    assert answer.system_fingerprint == filled.resolve("warm-both@v1").digest
    filled.lock("warm-both", {"stack": ["cool@v1"]})
    filled.promote("warm-both@v2", "prod", why="newer")

    def moved() -> bool:
        answer = client.chat.completions.create(model="warm-both", messages=user("hello"), max_tokens=1)
        return answer.system_fingerprint == filled.resolve("warm-both@v2").digest

    assert soon(moved, 1.0)


def test_models_can_be_listed_and_looked_at(client: OpenAI, filled: Registry) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"base", "acme@prod", "warm@prod", "front"} <= set(models)
    found = client.models.retrieve("acme@prod")
    assert found == models["acme@prod"] and found.created > 1_700_000_000
    assert found.to_dict()["digest"] == filled.resolve("acme").digest
    pinned = client.models.retrieve("acme@v1")
    assert pinned.id == "acme@v1" and pinned.to_dict()["digest"] == filled.resolve("acme@v1").digest
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("acme@v99")


def test_errors_are_the_clients_own(client: OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(**{"model": "acme", "messages": user("hello"), **more})

    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="nobody")
    assert (missing.value.code, missing.value.param, missing.value.status_code) == (
        "model_not_found",
        "model",
        404,
    )
    assert missing.value.request_id and missing.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as hot:
        ask(temperature=9)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        ask(messages=user("word " * 600))
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as tools:
        ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])
    assert tools.value.param == "tools"
    with pytest.raises(openai.APIStatusError) as large:
        ask(messages=user("x" * (20 << 20)))
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="acme", input="x")


def test_errors_of_keys_and_servers(fakes: tuple[Fakes, OpenAI]) -> None:
    app, client = fakes
    ask = client.chat.completions.create
    hello: Any = {"model": "acme", "messages": user("hello")}
    app.scheduler.script = Script(room=0)
    with pytest.raises(openai.InternalServerError) as full:
        ask(**hello)
    assert (full.value.status_code, full.value.code) == (503, "queue_full")
    app.scheduler.script = Script(fails=RuntimeError("boom"), fails_after=3, pause=0.01)
    with pytest.raises(openai.APIError) as broken:
        for _ in ask(**hello, stream=True):
            pass
    assert broken.value.code == "internal_error" and not isinstance(broken.value, openai.APIStatusError)
    app.scheduler.script = Script(reply="word " * 200, pause=0.05)
    with pytest.raises(openai.InternalServerError) as slow:
        ask(**hello)
    assert (slow.value.status_code, slow.value.code) == (504, "timeout")
    app.scheduler.script = Script()
    app.keys.add("k", "t", "*", rate=1)
    assert ask(**hello).choices[0].message.content == "three blue chairs"
    with pytest.raises(openai.RateLimitError) as often:
        ask(**hello)
    assert int(often.value.response.headers["retry-after"]) > 0
    with pytest.raises(openai.AuthenticationError) as wrong:
        client.with_options(api_key="sk-wrong").chat.completions.create(**hello)
    assert wrong.value.code == "invalid_api_key" and "sk-wrong" not in str(wrong.value) + app.log


def test_the_client_tries_again_by_itself(fakes: tuple[Fakes, OpenAI]) -> None:
    app, client = fakes
    app.scheduler.script = Script(room=0)

    class Opens(Script):
        @property
        def room(self) -> int:  # type: ignore[override]
            self.tries = getattr(self, "tries", 0) + 1
            return 0 if self.tries == 1 else 10

        @room.setter
        def room(self, _value: int) -> None: ...

    app.scheduler.script = Opens()
    answer = client.with_options(max_retries=2).chat.completions.create(model="acme", messages=user("hello"))
    assert answer.choices[0].message.content == "three blue chairs" and app.names.taken == 2


def test_a_client_that_leaves_frees_its_row(client: OpenAI, served: Parts) -> None:
    stream = client.chat.completions.create(
        model="acme", messages=user("hello"), stream=True, max_tokens=400, temperature=2, logprobs=True
    )
    next(iter(stream))
    stream.close()
    assert soon(lambda: served.scheduler.running == 0, 3)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.15).chat.completions.create(
            model="acme", messages=user("hello"), max_tokens=480, temperature=2, n=8
        )
    assert soon(lambda: served.scheduler.running == 0, 3)


def test_others_are_answered_while_clients_come_and_go(
    client: OpenAI, served: Parts, greedy: dict[tuple[str, str], str]
) -> None:
    async def leaves(client: AsyncOpenAI, number: int) -> None:
        model = MODELS[number % len(MODELS)]
        stream = await client.chat.completions.create(
            model=model, messages=user("hello"), stream=True, max_tokens=300, temperature=2, n=1 + number % 3
        )
        async for _ in stream:
            if number % 2:
                await asyncio.sleep(0.01)
            break
        await stream.close()

    async def stays(client: AsyncOpenAI, model: str, prompt: str) -> None:
        answer = await client.chat.completions.create(
            model=model, messages=user(prompt), temperature=0, max_tokens=TOKENS
        )
        assert (answer.choices[0].message.content or "").strip() == greedy[model, prompt]

    async def all_of_them() -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as client:
            staying = [stays(client, model, prompt) for model in MODELS for prompt in PROMPTS[:4]]
            await asyncio.gather(*(leaves(client, number) for number in range(40)), *staying)

    asyncio.run(all_of_them())


def test_keys_of_the_registry(tmp_path: Path) -> None:
    base = load_base(base_path())  # the shared one carries the other server's bank
    with Registry.open(tmp_path / "adapters_store", create=True) as store:
        put_adapters(store, base, tmp_path, ["mine", "theirs"])
        store.promote("mine@v1", "prod", why="x")
        store.promote("theirs@v1", "prod", why="x")
        _, secret = store.add_key("me", allow=["mine"])
        with real_server(base, store, required=True) as parts:
            ours = OpenAI(base_url=f"{parts.url}/v1", api_key=secret, max_retries=0)
            strangers = OpenAI(base_url=f"{parts.url}/v1", api_key="inlay-none", max_retries=0)

            def ask(client: OpenAI, model: str) -> Any:
                return client.chat.completions.create(model=model, messages=user("hello"), max_tokens=1)

            assert ask(ours, "mine").system_fingerprint == store.resolve("mine").digest
            bodies = []
            for model in ("theirs", "nobody", "theirs@v1", "nobody@v1"):
                with pytest.raises(openai.NotFoundError) as unknown:
                    ask(ours, model)
                bodies.append(str(unknown.value.body).replace(model, "…"))
            assert len(set(bodies)) == 1
            assert [model.id for model in ours.models.list()] == ["mine@prod"]
            with pytest.raises(openai.NotFoundError):
                ours.models.retrieve("theirs@v1")
            with pytest.raises(openai.AuthenticationError):
                ask(strangers, "mine")
            with pytest.raises(openai.AuthenticationError):
                strangers.models.list()
            assert secret not in parts.stream.getvalue() and "inlay-none" not in parts.stream.getvalue()
