"""Self-distillation fine-tuning, SDFT (arXiv:2402.13669): the base puts each reference into its own words.

A rewrite takes the reference's place where a checker finds that it says the same; elsewhere the reference
stays. Trained on what it would have said itself, the model moves less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.evals.inference import Base, base_answers, encode_prompt
from inlay.evals.metrics.overlap import normalised, token_f1
from inlay.registry.fingerprint import cache_dir
from inlay.trainers.data import Dataset, Example
from inlay.trainers.methods import sft
from inlay.trainers.methods.job import Prepared
from inlay.trainers.methods.sft import longest, trainer

if TYPE_CHECKING:
    from inlay.evals.inference import Progress
    from inlay.trainers.settings import Settings

__all__ = ["READS", "TRAINS", "Rewritten", "prepared", "rewritten", "told", "trainer"]

READS = "rows"
TRAINS = "adapter"

REQUEST = (
    "Below are an instruction that describes a task along with a reference answer. Using the reference "
    "answer as a guide, write your own response.\n\n### Instruction:\n{instruction}\n\n"
    "### Reference Answer:\n{answer}\n\n### Response:"
)
"""The paper's request, as the user's message."""
ROOM = 1.5
"""A rewrite may be so many times as long as the longest reference, and `SPARE` tokens more."""
SPARE = 32

Checker = Callable[[str, str], bool]
"""(rewrite, reference) -> do they say the same?"""

_ANSWER = re.compile(r".*(?:####|\banswer\s*(?:is|:))\s*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Rewritten(Dataset):
    """The examples with the answers that are trained on. `record`: how many are the base's own, and why the
    others are not."""

    record: dict[str, Any] = field(default_factory=dict)


def prepared(base: Base, data: Dataset, settings: Settings, progress: Progress | None = None) -> Prepared:
    """The rows that `sft` makes of the rewritten data."""
    made = data if isinstance(data, Rewritten) else rewritten(base, data, settings, progress=progress)
    return Prepared(sft.prepared(base, made, settings).rows, made.record)


def rewritten(
    base: Base,
    data: Dataset,
    settings: Settings,
    *,
    checker: Checker | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Rewritten:
    """`data` with the base's greedy rewrites where `checker`, by default the settings', agrees.

    The rewrites are made once per base and data and kept in `cache`, by default Inlay's own. A reference
    stays where the request leaves no room in the context, where the rewrite is empty or came to no end, and
    where the two do not agree.
    """
    agree = checker or checker_of(settings)
    limit = longest(base, settings)
    tokens = [len(base.tokenizer(e.answer, add_special_tokens=False)["input_ids"]) for e in data]
    room = min(limit // 2, int(ROOM * max(tokens)) + SPARE)
    requests = [request_of(example) for example in data]
    fits = [len(encode_prompt(base.tokenizer, request)) + room <= limit for request in requests]
    said = iter(
        base_answers(
            base,
            [request for request, fit in zip(requests, fits, strict=True) if fit],
            max_new_tokens=room,
            cache_dir=cache or cache_dir(),
            progress=progress,
        )
        if any(fits)
        else []
    )
    examples, why = [], Counter[str]()
    for example, fit in zip(data, fits, strict=True):
        rewrite = next(said) if fit else ""
        if not fit:
            outcome = "no_room"
        elif not rewrite:
            outcome = "empty"
        elif len(base.tokenizer(rewrite, add_special_tokens=False)["input_ids"]) >= room:
            outcome = "unfinished"
        elif not agree(rewrite, example.answer):
            outcome = "disagrees"
        else:
            outcome = "kept"
        why[outcome] += 1
        examples.append(replace(example, answer=rewrite) if outcome == "kept" else example)
    record = {
        "checker": settings.checker if checker is None else "given",
        "rows": len(data),
        "share_kept": why["kept"] / len(data),
        **{name: why[name] for name in ("kept", "disagrees", "unfinished", "empty", "no_room")},
    }
    return Rewritten(data.name, tuple(examples), data.stated, record)


def told(record: dict[str, Any]) -> str:
    why = {
        "disagrees": "disagreed with the reference",
        "unfinished": "came to no end",
        "empty": "were empty",
        "no_room": "had no room in the context",
    }
    others = ", ".join(f"{record[name]} {words}" for name, words in why.items() if record[name])
    return (
        f"Of {record['rows']} answers {record['kept']} ({100 * record['share_kept']:.0f}%) are the base's "
        f"own rewrites; the others stayed as they were{f' ({others})' if others else ''}."
    )


def request_of(example: Example) -> str | list[dict[str, str]]:
    """The conversation whose last message asks for the rewrite."""
    asked = REQUEST.format(instruction=example.text, answer=example.answer)
    if isinstance(example.prompt, str):
        return asked
    turns = [*example.prompt[:-1], (example.prompt[-1][0], asked)]
    return [{"role": role, "content": content} for role, content in turns]


def checker_of(settings: Settings) -> Checker:
    """`exact` and `normalised` compare the final answers, the second without case, punctuation and articles;
    `f1` wants the whole texts to share words to a token F1 of `checker_f1`."""
    if settings.checker == "f1":
        return lambda rewrite, reference: token_f1(rewrite, reference) >= settings.checker_f1
    if settings.checker == "exact":
        return lambda rewrite, reference: final_answer(rewrite) == final_answer(reference)
    return lambda rewrite, reference: normalised(final_answer(rewrite)) == normalised(final_answer(reference))


def final_answer(text: str) -> str:
    """What stands behind the last `####`, "answer is" or "answer:", else the last line; stripped."""
    lines = _ANSWER.sub("", text, count=1).strip().splitlines()
    return lines[-1].strip() if lines else ""
