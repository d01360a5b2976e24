"""The bodies of requests and answers, field by field as OpenAI documents them.

Three sorts of fields come in: those that are followed, those that change no answer here and are passed over,
and those that would change the answer and cannot be followed, which are refused by name. What OpenAI does not
know either is refused too, so that a misspelt setting is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inlay.serving.errors import invalid, shown

MOST_CHOICES = 8
MOST_PROMPTS = 64
MOST_STOPS = 4
MOST_WEIGHTS = 256
MOST_MESSAGES = 2048

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Prompt = Annotated[str, Field(max_length=2**30)]
"""Far above any body; given a bound, pydantic looks at the characters and refuses half a surrogate pair."""
_Text = Annotated[str, Field(max_length=512)]
_Stop = Annotated[str, Field(min_length=1, max_length=512)]


def _document(schema: dict[str, Any], body: type[_Body]) -> None:
    """Fields that are passed over or refused, where readers of the OpenAPI document look for them."""
    for name in sorted(body.passed_over):
        schema["properties"][name] = {"description": "Changes no answer."}
    for name, values in sorted(body.harmless.items()):
        schema["properties"][name] = {"enum": [None, *values], "description": "Cannot be followed."}
    schema["additionalProperties"] = False


class _Body(BaseModel):
    """`harmless`: fields that cannot be followed, with the values that ask for nothing."""

    model_config = ConfigDict(strict=True, extra="ignore", json_schema_extra=_document)
    passed_over: ClassVar[frozenset[str]] = frozenset()
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_cannot_be_followed(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            if name in cls.model_fields or name in cls.passed_over:
                continue
            if name not in cls.harmless:
                raise invalid(f"unknown parameter {shown(name)}", _param(name), "unknown_parameter")
            if value is not None and not any(_same(value, each) for each in cls.harmless[name]):
                raise invalid(f"this server does not support {shown(name)}", name, "unsupported_parameter")
        return data


def _same(value: Any, other: Any) -> bool:
    """Equality, but False is not 0."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _param(name: str) -> str:
    return shown(name).strip("`")


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk at the end, with the tokens that were used."""

    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Extension(BaseModel):
    """Beside OpenAI's fields. `weights`: how much of which member of the variant this request gets, by its
    reference; members left out get nothing. `expert`: the one it names where a route goes by request."""

    model_config = ConfigDict(strict=True, extra="forbid")
    weights: Annotated[dict[_Text, _Finite], Field(max_length=MOST_WEIGHTS)] | None = None
    expert: _Text | None = None


class _Asked(_Body):
    """What both endpoints share. `temperature` is 1 where it is left out, as OpenAI has it; 0 is greedy."""

    # They cost, count or remember; without tools nothing is called in parallel.
    passed_over: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata",
            "parallel_tool_calls",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
        }
    )
    model: Annotated[str, Field(min_length=1, max_length=256, examples=["base"])]
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: _Text | None = None
    inlay: Extension | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> _Asked:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options may be set where stream is true", "stream_options")
        return self

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text"]
    text: _Prompt


class Message(_Body):
    """`developer` is read as `system` where the base's chat template does not know it."""

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "name": (),
        "refusal": (),
        "tool_calls": ([],),
    }
    role: Literal["system", "developer", "user", "assistant"]
    content: (
        _Prompt | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    )

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


_MUTE: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
}


class ChatRequest(_Asked):
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **_MUTE,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    messages: Annotated[
        list[Message],
        Field(
            min_length=1,
            max_length=MOST_MESSAGES,
            fail_fast=True,
            examples=[[{"role": "user", "content": "hello"}]],
        ),
    ]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs may be set where logprobs is true", "top_logprobs")
        if self.max_tokens not in (None, self.max_completion_tokens or self.max_tokens):
            raise invalid(
                "max_tokens is the old name of max_completion_tokens: set one of them",
                "max_completion_tokens",
            )
        return self


_Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=2**20, fail_fast=True)
]


class CompletionRequest(_Asked):
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {**_MUTE, "echo": (False,), "suffix": ("",)}
    prompt: (
        _Prompt
        | Annotated[list[_Prompt], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    ) = Field(examples=["hello"])
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None

    @model_validator(mode="after")
    def _best_of_all(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise invalid("best_of must be n: all choices are returned", "best_of", "unsupported_parameter")
        return self


class PromptTokens(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    """`cached_tokens`: those of the prompt whose keys and values were known from an earlier request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class _Answered(BaseModel):
    """`system_fingerprint`: the digest of what answered."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatCompletion(_Answered):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(_Answered):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(BaseModel):
    """`digest`: what a request for this name gets now; None for a split's name, whose arms have their own."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["inlay"] = "inlay"
    digest: str | None = None


class ModelCards(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Standing(BaseModel):
    status: Literal["alive", "ready"]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail
