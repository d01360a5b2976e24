"""The report at load against one plain pass over the same probe.

Plain pass: the composed model's forward as transformers does it, logits at every position, over the probe's
prompts with the base's answers, in the batches the report uses. Report: `at_load` with the base's side in the
cache, that is reading and verifying it, the same forward with the head where answers are predicted only, the
base's logits from its hidden states, divergences, flips, alarm. Both tokenize what they read. Interleaved in
one process, in seconds of the processor, since the machine is shared; each round gives a ratio, the median
and quartiles are printed.

    python benchmarks/forgetting.py                       # the built-in base and a Llama with a small head
    INLAY_TEST_DATA=… python benchmarks/forgetting.py     # mini-instruct as well
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from inlay.builtin import base_path
from inlay.composer.bank import Bank
from inlay.composer.calibrating import synthetic
from inlay.evals import Suite
from inlay.evals.inference import Base, Chat, batches_by_length, encode_pair, load_base, pad
from inlay.evals.load_time import at_load, probe_prompts
from inlay.evals.scoring import library_versions

ASKED, SMALL_HEAD = 1.3, 0.10
WEIGHT = 0.1
"""Of the delta in the bank: enough to be computed, not to turn answers into noise."""


def bases() -> Iterator[tuple[str, Base]]:
    """What is measured: name and base."""
    yield "inlay-base-2m", load_base(base_path(), device="cpu")
    if "INLAY_TEST_DATA" in os.environ:
        folder = Path(os.environ["INLAY_TEST_DATA"]) / "models" / "mini-instruct"
        yield "mini-instruct", load_base(folder, device="cpu")
    yield "Llama, 6 layers of 256, random", small_head()


def small_head() -> Base:
    """A random Llama of 6 layers of 256 with the built-in base's vocabulary: its head is under a tenth."""
    from transformers import LlamaConfig, LlamaForCausalLM

    like = load_base(base_path(), device="cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=like.model.config.vocab_size,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Base(model, like.tokenizer, like.fingerprint)


def head_share(base: Base) -> float:
    """Multiplications of the head over those of all linear layers, at one position."""
    head = base.model.get_output_embeddings()
    linear = sum(
        m.weight.numel() for m in base.model.modules() if isinstance(m, torch.nn.Linear) and m is not head
    )
    return head.weight.numel() / (linear + head.weight.numel())


def plain_pass(chat: Chat, prompts: list[Any], answers: list[str]) -> float:
    """A forward over the probe as transformers does it; a number that depends on every logit."""
    pairs = [encode_pair(chat.tokenizer, p, a)[0] for p, a in zip(prompts, answers, strict=True)]
    seen = 0.0
    with torch.inference_mode():
        for rows in batches_by_length([len(ids) for ids in pairs], chat.batch_tokens):
            ids, mask = pad([pairs[i] for i in rows], chat.tokenizer.pad_token_id, side="right", device="cpu")
            logits = chat.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            seen += float(logits[:, -1].sum())
    return seen


def measure(name: str, base: Base, rounds: int) -> None:
    """One line of the table."""
    suite = Suite.load("general-v1")
    prompts = probe_prompts([suite])
    bank = Bank(base.model)
    gate = torch.zeros(bank.load(synthetic(base.model, "random", 0)) + 1)
    gate[-1] = WEIGHT
    bank.gate.set(gate)
    bare, chat = Chat(base, route=lambda _: bank.gate.held_at(None)), Chat(base)
    cache = Path(tempfile.mkdtemp(prefix="inlay-bench-"))

    def report() -> Any:
        return at_load(bare, chat, label=name, general=[suite], cache=cache).drift

    first = report()
    answers = bare.generate(prompts, max_new_tokens=32)
    plain_pass(chat, prompts, answers)
    ratios, plain, load = [], [], []
    for turn in range(rounds):
        times = {}
        for what in ("plain", "load") if turn % 2 else ("load", "plain"):
            start = time.process_time()
            if what == "plain":
                plain_pass(chat, prompts, answers)
            else:
                again = report()
                assert again.base_from_cache and again.forward_kl == first.forward_kl
            times[what] = time.process_time() - start
        ratios.append(times["load"] / times["plain"])
        plain.append(times["plain"])
        load.append(times["load"])
    low, middle, high = statistics.quantiles(ratios, n=4)
    share = head_share(base)
    verdict = "" if share > SMALL_HEAD else f" (asked: at most {ASKED})"
    positions = sum(len(encode_pair(base.tokenizer, p, a)[0]) for p, a in zip(prompts, answers, strict=True))
    print(
        f"| {name} | {100 * share:.0f}% | {first.positions} of {positions} | {1000 * min(plain):.0f} ms | "
        f"{1000 * min(load):.0f} ms | {middle:.2f}× | {low:.2f} to {high:.2f} |{verdict}",
        flush=True,
    )
    bank.detach()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, {library_versions()}")
    print("| base | head | predicted positions | plain pass | report | ratio | quartiles |")
    print("|---|---|---|---|---|---|---|")
    for name, base in bases():
        measure(name, base, arguments.rounds)


if __name__ == "__main__":
    main()
