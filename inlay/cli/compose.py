"""inlay plan, lock, generate"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from inlay.cli.console import base_options, common, emit, open_store, printable_lines, table, why_option

if TYPE_CHECKING:
    from inlay.composer import Plan
    from inlay.composer.overlaps import Overlap
    from inlay.composer.slots import MergedSlot
    from inlay.composer.weights import WeightReport


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
@click.argument("recipe")
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
    recipe: str,
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

    Routers are fitted here. A lock never changes: run this again when the adapters have moved on.

    \b
    Example:
      inlay lock acme acme.yaml --why "faq and tickets"
    """
    from inlay.cli.bases import base_or_last
    from inlay.cli.look import lock_dict
    from inlay.composer import lock

    registry = open_store(store)
    made = lock(
        registry,
        name,
        recipe,
        base=base_or_last(base),
        general_prompts=general_prompts,
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
@click.option("--explain", is_flag=True, help="Say which expert a router chose.")
@click.option("--device", default="auto", show_default=True)
@base_options
@common
def generate_verb(
    ref: str,
    prompts: tuple[str, ...],
    max_new_tokens: int,
    explain: bool,
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
    from inlay.registry import printable

    composed = compose(
        ref,
        store=open_store(store),
        base=base_or_last(base),
        device=device,
        accept_prompt_change=accept_prompt_change,
    )
    answers = composed.generate(list(prompts), max_new_tokens=max_new_tokens)
    chosen = composed.choices(list(prompts)) if explain else [()] * len(prompts)
    rows = [
        {"prompt": p, "answer": a, "served_by": composed.target.ref, "experts": list(c)}
        for p, a, c in zip(prompts, answers, chosen, strict=True)
    ]
    lines = [
        printable(a) + (f"   [{', '.join(c) or composed.target.ref}]" if explain else "")
        for a, c in zip(answers, chosen, strict=True)
    ]
    emit("generate", as_json, rows, "\n".join(lines))


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
