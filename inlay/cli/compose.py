"""inlay plan, lock, generate"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import base_options, common, emit, open_store, printable_lines, table, why_option

if TYPE_CHECKING:
    from inlay.composer import Plan
    from inlay.composer.model import Answer
    from inlay.composer.overlaps import Overlap
    from inlay.composer.slots import MergedSlot
    from inlay.composer.weights import WeightReport

EXPLAINED = 4
"""Experts that `--explain` shows of each route, the likeliest first."""


@click.command("plan")
@click.argument("ref")
@click.option(
    "--overlaps",
    "with_overlaps",
    is_flag=True,
    help="How much of each other's directions every two members use; reads them, with torch.",
)
@click.option(
    "--weights",
    "with_weights",
    is_flag=True,
    help="How large each member is beside the weights it changes; reads both, with torch.",
)
@click.option("--base", metavar="BASE", help="With --weights: where the base lies.  [default: as last seen]")
@common
def plan_verb(
    ref: str, with_overlaps: bool, with_weights: bool, base: str | None, store: str | None, as_json: bool
) -> None:
    """Show what REF would load, when each part speaks, what it costs; nothing is loaded.

    \b
    Example:
      inlay plan acme@v2 --overlaps
      inlay plan acme@v2 --weights
    """
    from inlay.composer import make_plan

    if base is not None and not with_weights:
        raise click.UsageError("--base goes with --weights: nothing else here reads the base")
    registry = open_store(store)
    plan = make_plan(registry, registry.resolve(ref))
    found: dict[str, Any] = {}
    text: list[str] = []
    report = None
    if with_weights:
        from inlay.cli.bases import base_or_last
        from inlay.composer import weigh

        report = weigh(plan, store=registry, base=base_or_last(base))
        found["weights"] = report.to_dict()
        text.append(_weights_text(report))
    if with_overlaps:
        from inlay.composer.overlaps import overlaps

        pairs = report.overlaps if report is not None else overlaps(registry, plan)
        strong = tuple(pair.warning() for pair in pairs if pair.strong and pair.together)
        plan = replace(plan, warnings=(*plan.warnings, *strong))
        found["overlaps"] = [pair.to_dict() for pair in pairs]
        text.insert(0, _overlaps_text(pairs))
    emit("plan", as_json, {**plan.to_dict(), **found}, lambda: "\n".join([_plan_text(plan), *text]))


@click.command("lock")
@click.argument("name")
@click.argument("recipe", required=False)
@click.option(
    "--add-expert",
    "added",
    multiple=True,
    metavar="REF",
    help="One expert more for the route of RECIPE, or of the newest lock; repeatable.",
)
@click.option("--drop-expert", "dropped", multiple=True, metavar="NAME", help="One less; repeatable.")
@click.option(
    "--examples",
    multiple=True,
    metavar="NAME=FILE",
    help='JSONL of {"prompt"}: requests for the adapter NAME.  [default: kept from its training]',
)
@click.option(
    "--general-prompts",
    metavar="FILE",
    help="JSONL of prompts that a router leaves to the base.  [default: those that ship]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="For routers.")
@click.option("--to", "alias", metavar="ALIAS", help="Promote the new lock to this alias as well.")
@base_options
@why_option
@common
def lock_verb(
    name: str,
    recipe: str | None,
    added: tuple[str, ...],
    dropped: tuple[str, ...],
    examples: tuple[str, ...],
    general_prompts: str | None,
    seed: int,
    alias: str | None,
    base: str | None,
    accept_prompt_change: bool,
    why: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Resolve RECIPE (a YAML file) afresh and keep it as the next lock of the variant NAME.

    Routers are fitted here. A lock never changes: run this again when the adapters have moved on. Without
    RECIPE it is that of the newest lock.

    \b
    Examples:
      inlay lock acme acme.yaml --why "faq and tickets"
      inlay lock acme --add-expert slips@prod --drop-expert faq --why "slips instead of faq"
    """
    from inlay.cli.bases import base_or_last
    from inlay.cli.look import lock_dict
    from inlay.composer import lock
    from inlay.composer.experts import with_experts, written
    from inlay.registry import Recipe

    registry = open_store(store)
    parsed = written(registry, name) if recipe is None else Recipe.of(recipe)
    made = lock(
        registry,
        name,
        with_experts(parsed, add=added, drop=dropped) if added or dropped else parsed,
        base=base_or_last(base),
        general_prompts=general_prompts,
        examples=_prompts_by_name(examples),
        accept_prompt_change=accept_prompt_change,
        why=why,
        seed=seed,
    )
    found = lock_dict(made)
    text = f"locked {made.ref}: {', '.join(m.ref for m in made.members)}\n{made.digest}"
    if alias is not None:
        event = registry.promote(made.ref, alias, why=why)
        found["promoted"] = event.sentence()
        text += f"\n{event.sentence()}"
    emit("lock", as_json, found, text)


@click.command("generate")
@click.argument("ref")
@click.argument("prompts", nargs=-1, required=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--explain", is_flag=True, help="Say which experts a router chose, and how sure it was.")
@click.option("--expert", metavar="NAME", help="The expert to ask, where a route goes by request.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="Reach this adapter and no other that is not named so, whatever a router says; repeatable.",
)
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def generate_verb(
    ref: str,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    explain: bool,
    expert: str | None,
    allow: tuple[str, ...],
    device: str,
    base: str | None,
    accept_prompt_change: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Ask REF one or more PROMPTS; greedy.

    \b
    Example:
      inlay generate acme@prod "My card was swallowed" --explain
    """
    from inlay.cli.bases import base_or_last
    from inlay.composer import compose

    composed = compose(
        ref,
        store=open_store(store),
        base=base_or_last(base),
        device=device,
        allow=allow or None,
        accept_prompt_change=accept_prompt_change,
    )
    experts = None if expert is None else [expert] * len(prompts)
    answers = composed.answers(list(prompts), max_new_tokens=max_new_tokens, experts=experts)
    rows = [
        {
            "prompt": prompt,
            "answer": answer.text,
            "served_by": composed.target.ref,
            "experts": [each.expert for each in answer.decisions],
            "routes": [asdict(each) for each in answer.decisions],
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    lines = [line for answer in answers for line in _answer_lines(answer, composed.target.ref, explain)]
    emit("generate", as_json, rows, lambda: printable_lines(lines))


def _answer_lines(answer: Answer, ref: str, explain: bool) -> list[str]:
    if not explain:
        return [answer.text]
    if not answer.decisions:
        return [f"{answer.text}   [{ref}]"]
    lines = [f"{answer.text}   [{', '.join(each.expert for each in answer.decisions)}]"]
    for each in answer.decisions:
        likely = sorted(each.scores.items(), key=lambda pair: -pair[1])[:EXPLAINED]
        said = ", ".join(f"{label} {100 * score:.1f}%" for label, score in likely if score >= 0.0005)
        where = f" at {each.path}" if each.path else ""
        lines.append(f"  {each.by}{where}: {said or each.expert}")
    return lines


def _prompts_by_name(given: Sequence[str]) -> dict[str, list[str]]:
    """NAME=FILE, each the prompts for one adapter."""
    from inlay.evals.prompts import read_prompts

    found: dict[str, list[str]] = {}
    for each in given:
        name, separator, file = each.partition("=")
        if not separator or not name or not file:
            raise click.UsageError(f"--examples takes NAME=FILE, got {each!r}")
        found.setdefault(name, []).extend(read_prompts(file, what=f"examples for {name}"))
    return found


def _plan_text(plan: Plan) -> str:
    from inlay.composer.plan import DTYPES
    from inlay.composer.slots import MergedSlot

    lines = [f"{plan.ref} on {plan.base.name}   {plan.digest}"]
    cells = []
    for leaf in plan.leaves:
        slot = plan.slots[leaf.slot]
        when = " and ".join(
            f"{plan.routes[route].by} chooses {plan.routes[route].experts[expert]}"
            for route, expert in leaf.conditions
        )
        rank = max(slot.ranks.values(), default=0)
        cells.append(
            (
                slot.ref,
                f"{leaf.weight:g}",
                str(rank),
                str(len(slot.sizes)),
                f"{slot.nbytes:,}",
                slot.exactness,
                when or "always",
            )
        )
    lines.append(table(cells, ("adapter", "weight", "rank", "modules", "bytes", "delta", "speaks")))
    adds = f"adds {plan.flops_per_token:,} FLOPs a token while all of it speaks"
    lines.append(f"in all {plan.nbytes:,} bytes; {adds if plan.alone is None else 'no bank, PEFT runs it'}")
    dtypes = ", ".join(dict.fromkeys(DTYPES[buffer.dtype][0] for buffer in plan.buffers.values()))
    if plan.buffers:
        lines.append(
            f"on the device {plan.device_nbytes:,} bytes in {dtypes}"
            + ("" if dtypes == "float32" else f", {plan.device_nbytes_float32:,} in float32")
        )
    lines += [_merge_text(slot) for slot in plan.slots if isinstance(slot, MergedSlot)]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def _overlaps_text(pairs: Sequence[Overlap]) -> str:
    if not pairs:
        return "no two members adapt the same module"
    cells = [
        (
            f"{pair.a} and {pair.b}",
            str(len(pair.modules)),
            f"{pair.read:.2f}",
            f"{pair.written:.2f}",
            f"{sum(m.chance_read + m.chance_written for m in pair.modules) / (2 * len(pair.modules)):.2f}",
        )
        for pair in pairs
    ]
    return table(cells, ("overlap of", "modules", "read", "written", "at random"))


def _weights_text(report: WeightReport) -> str:
    from inlay.composer.weights import percent_of

    def figure(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = list(report.members)
    if report.whole is not None and report.whole not in rows:
        rows.append(report.whole)
    cells = [
        (
            each.ref,
            str(len(each.modules)),
            figure(each.norm, ".3g"),
            "-" if each.relative is None else percent_of(each.relative),
            figure(each.effective_rank, ".1f"),
            each.largest.module if each.largest else "-",
        )
        for each in rows
    ]
    headers = ("weights of", "modules", "‖ΔW‖", "of ‖W‖", "effective rank", "most changed")
    return "\n".join([table(cells, headers), *printable_lines(report.findings()).splitlines()])


def _merge_text(slot: MergedSlot) -> str:
    settings = slot.settings
    said = [f"{name} {json.dumps(value)}" for name, value in settings.params.items()]
    said += [f"seed {settings.seed}"] if settings.method.random else []
    said += [f"rank {settings.rank}"] if settings.rank is not None else []
    said += [f"energy {settings.energy:g}"] if settings.energy is not None else []
    lost = "what is cut is known once it is locked or loaded"
    if slot.truncation is not None:
        cut, worst = max(((error, module) for module, error in slot.truncation.items()), default=(0.0, ""))
        lost = f"cut by up to {cut:.2g} of a module's norm ({worst})" if cut > 1e-6 else "nothing is cut"
    return f"{slot.ref}: {slot.exactness}{''.join(f', {each}' for each in said)}; {lost}"
