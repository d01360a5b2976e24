"""The model card of what is pushed: what it is, what it scored and forgot, how to use, verify and undo it.

Front matter by the hub's own classes (https://huggingface.co/docs/hub/model-cards); the text from
card.md.jinja. Whatever the template prints is text from outside and made harmless, unless it is `Safe`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.evals.forgetting import ForgettingReport, percent
from inlay.evals.metrics import unit_of
from inlay.evals.statistics import Paired
from inlay.hub.licences import identifier
from inlay.registry import BaseRef, EvalRecord, Lock, Registry, Version
from inlay.registry.hub import is_repo_id
from inlay.registry.printable import printable

if TYPE_CHECKING:
    from jinja2 import Template

LONGEST = 400
"""Characters of one text from outside that a card repeats."""

_MEANS_MORE = re.compile(r"[^A-Za-z0-9 \u0080-\U0010ffff.,;?!'\"%+/()=-]")
# A colon makes an address a link; dots, dashes and digits begin a list only at the head of a line, where no
# text from outside stands.


class Safe(str):
    """Text that was made here and means what it says in Markdown."""

    __slots__ = ()


def escaped(value: object) -> Safe:
    """`value` as one line of plain text in Markdown and HTML alike: what could mean more is an entity.

    An entity never begins a table's cell, a heading, a link or a tag
    (https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references).
    """
    if isinstance(value, Safe):
        return value
    text = printable(" ".join(str(value).split()))
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return Safe(_MEANS_MORE.sub(lambda match: f"&#{ord(match[0])};", text))


@dataclass(frozen=True)
class Row:
    """One suite's line: scores in percent with their 95% intervals, the base's and the paired difference
    where both were measured alike."""

    suite: str
    metric: str
    n: int
    score: Safe
    base: Safe
    difference: Safe


def render(
    target: Version | Lock,
    registry: Registry,
    *,
    repo: str,
    config: Mapping[str, Any],
    manifest: Sequence[Mapping[str, Any]],
    evals: Sequence[EvalRecord],
    report: ForgettingReport | None,
    original_card: str | None,
) -> str:
    """The whole README.md. The same input gives the same text.

    `config` is the pushed adapter_config.json, `manifest` the pushed files as the registry lists them,
    `original_card` the name under which a version's own card is kept, None where it came with none.
    """
    lock = isinstance(target, Lock)
    members = _members(target, registry)
    base = base_repo(config, target.base, getattr(target, "card", {}).get("base_model"))
    run = registry.run_of(target) if isinstance(target, Version) else None
    about = registry.about(target.name)
    text = _template().render(
        target=target,
        lock=lock,
        repo=Safe(repo),
        ref=_code(target.ref),
        digest=_code(target.digest),
        base=Safe(f"[{base}](https://huggingface.co/{base})") if base else target.base.name,
        base_weights=_code(target.base.weights),
        base_code=Safe(json.dumps(base or "path/to/the/base")),
        rank=int(config.get("r") or 0),
        name=Safe(target.name),
        created=target.created[:10],
        owner=about.owner,
        description=about.description,
        licence=_licence(target, registry),
        members=[
            {"ref": _code(v.ref), "digest": _code(v.digest), "weight": w, "why": v.why} for v, w in members
        ],
        dataset=_dataset(run),
        rows=[_row(record, registry) for record in evals],
        report=report,
        skills=[_skill(skill) for skill in report.skills] if report else [],
        totals=_totals(report) if report else [],
        drift=report.drift if report else None,
        files=[{"path": _code(f["path"]), "size": f["size"], "sha256": _code(f["sha256"])} for f in manifest],
        original_card=Safe(original_card) if original_card else None,
    )
    return f"---\n{_front_matter(target, registry, base, evals)}\n---\n\n{text.strip()}\n"


def base_repo(config: Mapping[str, Any], base: BaseRef, said: object = None) -> str | None:
    """The base's id on the hub, as far as it is known: where it was fetched from, what the adapter's
    configuration says, or what its own card `said`.

    A folder's name on some machine is none, and must not become one in a card.
    """
    for name in (base.source, config.get("base_model_name_or_path"), said, base.name):
        if isinstance(name, str) and "/" in name and is_repo_id(name):
            return name
    return base.source if is_repo_id(base.source) else None


def newest_per_suite(evals: Sequence[EvalRecord]) -> list[EvalRecord]:
    """Of scores that come newest first, one for each suite, in the order of the suites' names."""
    newest: dict[str, EvalRecord] = {}
    for record in evals:
        newest.setdefault(record.suite_name, record)
    return [newest[name] for name in sorted(newest)]


def _front_matter(
    target: Version | Lock, registry: Registry, base: str | None, evals: Sequence[EvalRecord]
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=record.suite_name,
            dataset_name=record.suite_name,
            metric_type="+".join(part.partition("/")[0] for part in record.metric.split("+")),
            metric_name=f"{record.metric}, n={record.n}, 95% interval {record.low:.4f} to {record.high:.4f}",
            metric_value=round(record.score, 6),
        )
        for record in evals
    ]
    fields: dict[str, Any] = _licence_fields(target, registry)
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["inlay", "lora"],
        model_name=target.name if results else None,
        eval_results=results or None,
        **fields,
    )
    return data.to_yaml().strip()


def _licences(target: Version | Lock, registry: Registry) -> list[str]:
    """The licences of a version, or of a lock's members, each once; "" for a member without one."""
    versions = [target] if isinstance(target, Version) else [v for v, _ in _members(target, registry)]
    return sorted({version.licence or "" for version in versions})


def _licence_fields(target: Any, registry: Registry) -> dict[str, str]:
    licences = _licences(target, registry)
    given = [licence for licence in licences if licence]
    if not given:
        return {}
    known = identifier(given[0])
    if len(licences) == 1 and known not in (None, "other"):
        return {"license": str(known)}
    fields = {"license": "other", "license_name": printable(", ".join(given))[:LONGEST]}
    card = getattr(target, "card", {})
    for key in ("license_name", "license_link"):
        if isinstance(card.get(key), str):
            fields[key] = printable(card[key])[:LONGEST]
    return fields


def _licence(target: Version | Lock, registry: Registry) -> str:
    found = [licence or "not stated" for licence in _licences(target, registry)]
    return ", ".join(found)


def _members(target: Version | Lock, registry: Registry) -> list[tuple[Version, float]]:
    """A lock's members with their weights; none for a version."""
    if isinstance(target, Version):
        return []
    found = []
    for member in target.members:
        version = registry.resolve(member.ref)
        assert isinstance(version, Version)
        found.append((version, member.weight))
    return found


def _dataset(run: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Name, rows and digest of what it was trained on; the rows themselves are nowhere here."""
    dataset = (run or {}).get("dataset")
    if not isinstance(dataset, Mapping):
        return None
    return {"name": dataset.get("name"), "rows": dataset.get("rows"), "digest": dataset.get("digest")}


def _row(record: EvalRecord, registry: Registry) -> Row:
    def shown(one: EvalRecord) -> Safe:
        unit = unit_of(one.metric)
        return Safe(f"{unit.score(one.score)} ({unit.bare(one.low)} to {unit.bare(one.high)})")

    nothing = Safe("–")
    row = Row(record.suite_name, record.metric, record.n, shown(record), nothing, nothing)
    bases = registry.evals("base", record.suite, base_weights=record.base_weights, protocol=record.protocol)
    base = next((one for one in bases if one.comparable(record)), None)
    if base is None:
        return row
    row = replace(row, base=shown(base))
    if not all(isinstance(o, bool) for o in (*base.outcomes, *record.outcomes)):
        return row
    counts = Paired.of([bool(o) for o in base.outcomes], [bool(o) for o in record.outcomes])
    low, high = counts.interval
    difference = f"{100 * counts.delta:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return replace(row, difference=Safe(difference))


def _skill(skill: Any) -> dict[str, Any]:
    return {"name": skill.name, "held_out": skill.held_out, **_lost(skill.counts)}


def _totals(report: ForgettingReport) -> list[dict[str, Any]]:
    both = (("all held-out skills", True, report.held_out), ("all protected skills", False, report.protected))
    return [{"name": name, "held_out": held, **_lost(counts)} for name, held, counts in both if counts.n]


def _lost(counts: Paired) -> dict[str, Any]:
    low, high = counts.loss_interval
    return {
        "n": counts.n,
        "base": percent(counts.base_score),
        "now": percent(counts.model_score),
        "lost": Safe(f"{percent(counts.loss)} ({percent(low)} to {percent(high)})"),
        "bound": percent(counts.loss_upper),
    }


def _code(text: str) -> Safe:
    """A name or digest that was checked when it was registered, as a code span."""
    assert "`" not in text and "|" not in text and "\n" not in text, "only checked names stand in code"
    return Safe(f"`{text}`")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template("card.md.jinja")
