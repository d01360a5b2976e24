"""One buffer for many rows, held against transformers' own cache, one row at a time."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
)

from inlay.errors import InputError
from inlay.evals.inference import Base
from inlay.serving.kv_rows import KvLayout, KvRows, Span
from inlay.serving.row_adapters import Reader


class Alone:
    """The oracle: one row, computed with a cache of its own, without padding."""

    def __init__(self, model: torch.nn.Module, ids: list[int]) -> None:
        self.model, self.ids, self.cache = model, ids, DynamicCache()
        self.logits = self._forward(ids)

    def step(self, token: int) -> None:
        self.ids = [*self.ids, token]
        self.logits = self._forward([token])

    def _forward(self, ids: list[int]) -> torch.Tensor:
        out = self.model(input_ids=torch.tensor([ids]), past_key_values=self.cache, use_cache=True)
        return out.logits[0, -1]


def prompts(base: Base, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(5, base.model.config.vocab_size, (n,), generator=generator).tolist() for n in lengths
    ]


def agree(logits: torch.Tensor, oracles: list[Alone]) -> None:
    for row, oracle in zip(logits, oracles, strict=True):
        torch.testing.assert_close(
            row, oracle.logits, rtol=1e-5, atol=1e-5 * float(oracle.logits.abs().max())
        )


@pytest.mark.parametrize("seed", [0, 1])
@torch.inference_mode()
def test_rows_that_join_and_leave_at_random_are_what_each_is_alone(base: Base, seed: int) -> None:
    reader, generator = Reader(base), torch.Generator().manual_seed(seed)
    rows, oracles = KvRows(reader.layout, rows=1, columns=16), []

    def draw(most: int) -> int:
        return int(torch.randint(0, most, (1,), generator=generator))

    columns = set()
    for moment in range(60):
        if len(oracles) < 6 and draw(3) == 0:
            new = prompts(base, [1 + draw(40) for _ in range(1 + draw(3))], seed=moment)
            block, logits, *_ = reader.read(new, [None] * len(new))
            joining = [Alone(base.model, ids) for ids in new]
            agree(logits, joining)
            order = list(range(len(new)))[::-1]
            rows.join(block, order)
            oracles += [joining[i] for i in order]
        if oracles and draw(5) == 0:
            gone = draw(len(oracles))
            rows.leave(gone)
            oracles[gone] = oracles[-1]
            oracles.pop()
        if oracles:
            tokens = [5 + draw(1000) for _ in oracles]
            logits = reader.step(rows, tokens)
            for oracle, token in zip(oracles, tokens, strict=True):
                oracle.step(token)
            agree(logits, oracles)
        columns.add(rows.columns)
        assert [rows.length(i) for i in range(len(oracles))] == [len(oracle.ids) for oracle in oracles]
    assert len(columns) > 1, "the buffer must have grown on the way"


@torch.inference_mode()
def test_a_row_goes_on_from_the_span_of_another(base: Base) -> None:
    reader = Reader(base)
    first, second = prompts(base, [30, 11])
    block, *_ = reader.read([first, second], [None, None])
    spans = [block.span(0).first(20), None, block.span(1).first(11)]
    assert [span.tokens for span in spans if span] == [20, 11]
    asked = [[*first[:20], *prompts(base, [3], 7)[0]], second, [*second, *prompts(base, [9], 8)[0]]]
    found, logits, *_ = reader.read(asked, spans)
    oracles = [Alone(base.model, ids) for ids in asked]
    agree(logits, oracles)
    rows = KvRows(reader.layout)
    rows.join(found, range(3))
    for token in (9, 99, 999):
        logits = reader.step(rows, [token] * 3)
        for oracle in oracles:
            oracle.step(token)
        agree(logits, oracles)


@torch.inference_mode()
def test_memory_is_bounded_by_what_the_longest_row_needs(base: Base) -> None:
    """Rows that come and go for ever make the buffer no larger than the rows that are there at once."""
    reader = Reader(base)
    rows = KvRows(reader.layout, rows=2, columns=32)
    ids = prompts(base, [12, 8, 10])
    sizes = []
    for moment in range(300):
        if moment % 10 == 0:
            if len(rows.starts) == 2:
                rows.leave(0)
            rows.join(reader.read([ids[moment // 10 % 3]], [None])[0], [0])
        reader.step(rows, [7] * len(rows.starts))
        sizes.append(rows.nbytes)
    assert set(sizes) == {sizes[0]}


@torch.inference_mode()
def test_what_a_broken_row_leaves_behind_reaches_nobody(base: Base) -> None:
    reader = Reader(base)
    long, short, other = prompts(base, [40, 6, 30])
    rows = KvRows(reader.layout)
    block, *_ = reader.read([long, other], [None, None])
    for layer in block.layers:
        layer.keys[0], layer.values[0] = float("nan"), float("inf")
    rows.join(block, [0, 1])
    assert not bool(reader.step(rows, [5, 5])[0].isfinite().all())
    rows.leave(0)
    rows.join(reader.read([short], [None])[0], [0])
    oracles = [Alone(base.model, [*other, 5]), Alone(base.model, short)]
    logits = reader.step(rows, [6, 6])
    for oracle in oracles:
        oracle.step(6)
    agree(logits, oracles)


@torch.inference_mode()
def test_learned_positions_and_grouped_heads() -> None:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    llama = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64,
        )
    )  # fmt: skip
    for model in (gpt2.eval(), llama.eval()):
        reader = Reader(_Modelled(model))  # type: ignore[arg-type]
        ids = [[5, 6, 7, 8], [9, 10]]
        block, logits, *_ = reader.read(ids, [None, None])
        oracles = [Alone(model, row) for row in ids]
        agree(logits, oracles)
        rows = KvRows(reader.layout)
        rows.join(block, [0, 1])
        for token in (11, 12):
            for oracle in oracles:
                oracle.step(token)
            agree(reader.step(rows, [token, token]), oracles)


class _Modelled:
    """As much of a base as a reader needs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.tokenizer = type("Tokenizer", (), {"pad_token_id": 0})()


def test_a_model_with_windows_is_refused() -> None:
    config = MistralConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(InputError, match="attend to all tokens in every layer, and mistral has windows"):
        KvLayout.of(AutoModelForCausalLM.from_config(config))


def test_a_model_with_states_is_refused() -> None:
    from transformers import MambaConfig

    config = MambaConfig(vocab_size=99, hidden_size=32, state_size=4, num_hidden_layers=1)
    with pytest.raises(InputError, match="attend to all tokens in every layer, and mamba has windows"):
        KvLayout.of(AutoModelForCausalLM.from_config(config))


def test_a_span_counts_what_it_holds() -> None:
    span = Span(((torch.zeros(2, 5, 4), torch.zeros(2, 5, 3)),))
    assert (span.tokens, span.nbytes) == (5, 2 * 5 * 7 * 4)
    assert span.first(2).tokens == 2
