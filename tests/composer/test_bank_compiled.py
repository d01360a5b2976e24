"""torch.compile sees through the bank: one graph once a forward has prepared it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer_fakes import some_ids, write_lora

from inlay.composer.bank import Bank
from inlay.composer.factors import read_adapter
from inlay.evals.inference import Base


@pytest.mark.slow
def test_a_compiled_composed_model_is_one_graph_with_the_same_logits(base: Base, tmp_path: Path) -> None:
    adapters = [
        read_adapter(write_lora(tmp_path / f"a{i}", base, seed=i, strength=0.1), base=base.fingerprint.path)
        for i in range(3)
    ]
    bank = Bank(base.model)
    bank.attach(adapters)
    ids = some_ids(base, rows=4, length=1)
    torch._dynamo.reset()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        return base.model(input_ids=ids, use_cache=False).logits

    # The graph and its guards are what is tested; inductor's kernels would take minutes.
    compiled = torch.compile(logits, backend="aot_eager", fullgraph=True)
    try:
        with torch.no_grad():
            bare = logits(ids)
            for gate in (torch.ones(3), torch.eye(4)[:, :3], torch.tensor([1.0, 0.0, -0.5])):
                bank.gate.set(gate)
                expected = logits(ids)
                assert (compiled(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
                assert not torch.allclose(expected, bare, atol=1e-3)
    finally:
        bank.detach()
        torch._dynamo.reset()
