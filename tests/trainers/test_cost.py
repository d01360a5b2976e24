"""What a training took: FLOPs counted against the formula, memory against what was allocated."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from inlay.trainers.cost import Cost, counting_flops, formula, measuring

LAYERS, WIDTH, INNER, WORDS, ROWS, LENGTH = 3, 32, 48, 100, 4, 24
MATRICES = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) + WIDTH * WORDS


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=False,
        )
    )


def counted(model: torch.nn.Module, *, backward: bool = True) -> float:
    ids = torch.randint(0, WORDS, (ROWS, LENGTH))
    with counting_flops() as count:
        loss = model(input_ids=ids, labels=ids).loss
        if backward:
            loss.backward()
    return count.flops


SHAPE = {"tokens": ROWS * LENGTH, "length": LENGTH, "layers": LAYERS, "width": WIDTH}


def test_full_training_takes_six_a_weight_and_token(model: LlamaForCausalLM) -> None:
    assert counted(model) == formula(weights=0, trainable=MATRICES, **SHAPE)


def test_an_adapter_takes_four_a_frozen_weight_and_six_of_its_own(model: LlamaForCausalLM) -> None:
    """Exactly, but for the first layer's inputs: embeddings are frozen, so their gradient is not computed by
    q, k and v of layer 0, nor by the adapter's A there."""
    from peft import LoraConfig, get_peft_model

    rank = 2
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    saved = 2.0 * ROWS * LENGTH * (3 * WIDTH * WIDTH + 3 * rank * WIDTH)
    assert counted(adapted) == formula(weights=MATRICES, trainable=own, **SHAPE) - saved


def test_forward_alone_is_two_a_weight_and_token_and_attention(model: LlamaForCausalLM) -> None:
    with torch.no_grad():
        flops = counted(model, backward=False)
    assert flops == ROWS * LENGTH * (2.0 * MATRICES + 4.0 * LAYERS * LENGTH * WIDTH)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's high-water mark")
def test_memory_is_the_mark_of_what_happened_inside() -> None:
    big, small = 300_000_000, 1_000_000
    with measuring() as large:
        held = torch.ones(big // 4)
        del held
    with measuring() as little:
        torch.ones(small // 4)
    assert large.memory == little.memory == "resident"
    assert large.peak_bytes is not None and little.peak_bytes is not None
    assert 0.9 * big < large.peak_bytes - little.peak_bytes < 1.5 * big
    assert 0.0 < little.seconds < 60.0


def test_memory_is_taken_from_a_block_that_fails() -> None:
    with pytest.raises(KeyError), measuring() as measured:
        raise KeyError("inside")
    assert measured.peak_bytes is not None and measured.peak_bytes > 10_000_000


@pytest.mark.cuda
def test_memory_on_a_device_is_torchs_own() -> None:
    with measuring("cuda") as measured:
        torch.ones(50_000_000, device="cuda")
    assert measured.memory == "cuda" and measured.peak_bytes is not None
    assert 200_000_000 <= measured.peak_bytes < 400_000_000 + torch.cuda.memory_allocated()


def test_cost_is_kept_as_json_and_read_from_older_records() -> None:
    cost = Cost(12.5, 1000, 300, 1.5e12, 7_000_000, "resident", "cpu")
    assert Cost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    assert Cost.of_run({"cost": cost.to_dict(), "seconds": 1}) == cost
    assert Cost.of_run({"seconds": 3.5, "tokens": {"task": 7, "general": 2}}) == Cost(3.5, 7, 2)
