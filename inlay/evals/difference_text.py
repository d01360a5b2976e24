"""A difference on a terminal: sections of wrapped lines, and tables where they fit.

Everything that came from outside (reasons, names of data, values of configurations) is escaped.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from inlay.evals.difference import Change, Difference, MemberChange, ModuleChange, Norms, Side, Standing
from inlay.evals.forgetting import p_text, percent
from inlay.evals.metrics import Unit
from inlay.evals.score_changes import SURE, Part, ScoreChange
from inlay.registry.printable import printable

MODULES_SHOWN = 8
SKILLS_SHOWN = 8
LONGEST = 160
"""A value longer than this is cut; `--json` has the whole of it."""
NARROWEST = 24


def difference_text(difference: Difference, width: int) -> str:
    """The difference in at most `width` columns, a line break at the end of none."""
    width = max(width, NARROWEST)
    lines = [*_wrapped(f"{difference.a.ref} → {difference.b.ref}", width)]
    for sentence in summary(difference):
        lines += _wrapped(f"• {sentence}", width, hanging=2)
    for title, body in _sections(difference, width):
        lines += ["", *_wrapped(title, width, hanging=2), *body]
    return "\n".join(lines)


def summary(difference: Difference) -> list[str]:
    """What matters most, a sentence each."""
    if difference.same:
        what = "bytes" if difference.a.kind == "version" else "pinned recipe"
        return [f"Both are the same {what}."]
    said = []
    if any(change.what == "weights" for change in difference.base):
        said.append("They were made for different bases.")
    pinned = [_member(member) for member in difference.members if member.how]
    if pinned:
        said.append(f"Members: {', '.join(pinned)}.")
    said += _score_sentences(difference)
    data = _data_sentence(difference)
    if data:
        said.append(data)
    for pair in difference.norms or ():
        said.append(norm_sentence(pair))
    for standing in difference.standings:
        if standing.verdict is not None and not standing.verdict.passed:
            said.append(f"The guard of {_alias(difference, standing)} would refuse {difference.b.ref} now.")
    return said


def change_words(change: ScoreChange) -> str:
    """`up 3.2 points (95% 1.1 to 5.3)`; where zero is in the interval, `-0.2 points (95% -1.0 to 0.6)`. Where
    less is better the words say so: `down 0.31 (95% 0.22 to 0.4), which is better`."""
    low, high, unit = change.low, change.high, change.unit
    bare = unit.bare
    if low is None or high is None or low <= 0.0 <= high:
        interval = "" if low is None or high is None else f" (95% {bare(low)} to {bare(high)})"
        return f"{unit.change(_signed(change.delta, unit))}{interval}"
    if high < 0.0:
        said = f"down {unit.change(bare(-change.delta))} (95% {bare(-high)} to {bare(-low)})"
    else:
        said = f"up {unit.change(bare(change.delta))} (95% {bare(low)} to {bare(high)})"
    return said if unit.higher_is_better else f"{said}, which is {'better' if high < 0.0 else 'worse'}"


def norm_sentence(pair: Norms) -> str:
    """How far the second delta is from the first, and in which direction, over all modules."""
    total = pair.total
    one, other = pair.of
    if total.change == 0.0:
        return f"The deltas of {one} and {other} are the same numbers."
    if total.relative is None or total.cosine is None:
        return f"The delta of {one if total.norm_a == 0.0 else other} is zero."
    return (
        f"From {one} to {other} the delta moved by {total.relative:.2f} times its size "
        f"(cosine {total.cosine:.2f})."
    )


def _score_sentences(difference: Difference) -> Iterator[str]:
    scores = difference.scores
    sure = [score for score in scores if score.sure]
    for score in sorted(sure, key=lambda score: score.delta):
        yield f"{printable(score.label)} is {change_words(score)}, more than chance."
    if len(scores) == 1 and not sure:
        yield f"{printable(scores[0].label)} did not change by more than chance."
    elif scores and not sure:
        yield f"None of the {len(scores)} suites changed by more than chance."
    elif len(scores) > len(sure):
        yield f"{len(scores) - len(sure)} of {len(scores)} suites did not change by more than chance."
    if not scores:
        yield "No score of the two can be compared."


def _data_sentence(difference: Difference) -> str | None:
    before, after = difference.a.dataset, difference.b.dataset
    if before is None or after is None or difference.a.kind != "version":
        return None
    if before.get("digest") == after.get("digest"):
        return "Both were trained on the same data."
    return f"Trained on other data: {_dataset(before)} → {_dataset(after)}."


def _dataset(data: Any) -> str:
    rows = data.get("rows")
    counted = f" ({rows:,} rows)" if isinstance(rows, int) else ""
    return f"{_short(printable(str(data.get('name', '?'))))}{counted}"


def _sections(difference: Difference, width: int) -> Iterator[tuple[str, list[str]]]:
    yield "the two", [*_side(difference.a, width), *_side(difference.b, width)]
    if difference.base:
        yield "base", [*_changes(difference.base, width), *_meaning(difference.base, width)]
    if difference.members:
        yield "members", [line for member in difference.members for line in _member_lines(member, width)]
    listed = {
        "recipe": difference.recipe,
        "adapter": difference.adapter,
        "configuration": difference.configuration,
        "training": difference.data,
        "lineage": difference.lineage,
        "files": difference.files,
    }
    for title, changed in listed.items():
        if changed:
            yield title, _changes(changed, width)
    if difference.scores:
        yield "scores in percent, on the same items", _scores(difference, width)
    if difference.not_comparable:
        yield (
            "not comparable",
            [
                line
                for suite in difference.not_comparable
                for line in _entry(f"{printable(suite.suite)}: {printable(suite.reason)}", width)
            ],
        )
    for pair in difference.norms or ():
        yield f"deltas of {pair.of[0]} (a) and {pair.of[1]} (b)", _norms(pair, width)
    if difference.standings:
        yield f"guards, asked now about {difference.b.ref}", _standings(difference, width)
    if difference.said:
        yield "verdicts in the journal", _said(difference, width)
    if difference.notes:
        yield "notes", [line for note in difference.notes for line in _entry(printable(note), width)]


def _side(side: Side, width: int) -> list[str]:
    state = "" if side.state == "active" else f", {side.state}"
    live = f", live as {', '.join(side.live_in)}" if side.live_in else ""
    why = f": {printable(side.why)}" if side.why else ""
    made = f"{side.created[:16].replace('T', ' ')} by {printable(side.author)}{why}"
    return _entry(f"{side.ref}{state}{live}; {side.digest[:19]}…; {_short(made)}", width)


def _changes(listed: Sequence[Change], width: int) -> list[str]:
    return [
        line
        for change in listed
        for line in _entry(f"{_short(printable(change.what))}: {_sides(change)}", width)
    ]


def _sides(change: Change) -> str:
    if change.how == "added":
        return f"+ {_value(change.after)}"
    if change.how == "removed":
        return f"− {_value(change.before)}"
    if isinstance(change.before, list | tuple) and isinstance(change.after, list | tuple):
        gone = [x for x in change.before if x not in change.after]
        new = [x for x in change.after if x not in change.before]
        both = [f"+ {_value(new)}" if new else "", f"− {_value(gone)}" if gone else ""]
        if any(both):
            return ", ".join(part for part in both if part)
    return f"{_value(change.before)} → {_value(change.after)}"


def _value(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:") and len(value) > 19:
        return f"{value[:19]}…"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "nothing"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return _listed([_value(x) for x in value])
    return _short(printable(value if isinstance(value, str) else repr(value)))


def _listed(names: Sequence[str]) -> str:
    """Names with a comma; many modules by their last part, `q_proj (24 times)`."""
    if len(names) <= 4:
        return _short(", ".join(names)) or "nothing"
    counts: dict[str, int] = {}
    for name in names:
        last = name.rpartition(".")[2]
        counts[last] = counts.get(last, 0) + 1
    return _short(", ".join(name if n == 1 else f"{name} ({n} times)" for name, n in counts.items()))


def _meaning(listed: Sequence[Change], width: int) -> list[str]:
    """What a difference in the base means for the rest."""
    keys = {change.what for change in listed}
    if "weights" in keys:
        return _entry("Other base weights: no score of one says anything about the other.", width)
    if "prompt" in keys:
        return _entry(
            "Another tokenizer or chat template over the same weights: scores are not compared, since the "
            "models read other text.",
            width,
        )
    return []


def _member(member: MemberChange) -> str:
    before, after = member.before, member.after
    if before is None or after is None:
        held = after or before
        return f"{held.ref if held else member.name} {member.how[0]}"
    if "pinned anew" in member.how:
        return f"{before.ref} → {after.ref}"
    if "weight" in member.how:
        return f"{after.ref} weighs {after.weight:g} (before: {before.weight:g})"
    return f"{after.ref} moved"


def _member_lines(member: MemberChange, width: int) -> list[str]:
    before, after = member.before, member.after
    if before is None or after is None:
        held = before or after
        assert held is not None
        sign = "+" if before is None else "−"
        return _entry(f"{sign} {held.ref}, weight {held.weight:g}, at {held.path or 'the root'}", width)
    said = [f"{before.ref} → {after.ref}" if before.ref != after.ref else f"{after.ref}"]
    if "weight" in member.how:
        said.append(f"weight {before.weight:g} → {after.weight:g}")
    if "moved" in member.how:
        said.append(f"from {before.path or 'the root'} to {after.path or 'the root'}")
    if not member.how:
        said.append("the same")
    if "pinned anew" in member.how:
        said.append(f"see `inlay diff {before.ref} {after.ref}`")
    return _entry(", ".join(said), width)


def _scores(difference: Difference, width: int) -> list[str]:
    """A table where it fits, without the counts of items if need be, else two lines a suite."""
    a, b = _columns(difference)
    header = ("", "n", "base", a, b, "change", "95% interval", "p", "won", "lost")
    rows: list[tuple[str, ...]] = []
    for score in difference.scores:
        kind = "" if score.unit.share else f" [{score.unit.mean}]"
        rows.append(_score_row(printable(score.label + kind), score))
        rows += [_part_row(f"  {part.name}", part) for part in score.splits]
        rows += [_part_row(f"  {_skill(part)}", part) for part in _telling(score)]
    table = [header, *rows]
    lines = _table(table, width) or _table([row[:-2] for row in table], width)
    if lines is None:
        lines = [line for row in rows for line in _stacked(row, (a, b), width)]
    return [
        *lines,
        *(line for text in _remarks(difference) for line in _wrapped(f"  {text}", width, hanging=2)),
    ]


def _remarks(difference: Difference) -> Iterator[str]:
    """How the table is to be read, and what it leaves out."""
    scores = difference.scores
    yield (
        "Points, after minus before. p: exact McNemar, adjusted by Holm over the suites, for skills over the "
        "suite's skills; that of a split is its own."
    )
    if not all(score.unit.share for score in scores):
        yield "Rows with a metric in brackets are means of its outcomes in its own unit, not percent."
    if any(part.p_adjusted < SURE and not part.held_out for score in scores for part in score.skills):
        yield "° a protected skill, of which training may have seen prompts."
    changed = sum(part.p_adjusted < SURE for score in scores for part in score.skills)
    shown, skills = sum(len(_telling(score)) for score in scores), sum(len(score.skills) for score in scores)
    if skills:
        yield (
            f"{changed} of {skills} skills changed by more than chance"
            + (f", the {shown} that changed most are shown" if shown < changed else "")
            + " (--json has all)."
        )


def _skill(part: Part) -> str:
    return printable(part.name) + ("" if part.held_out else " °")


def _columns(difference: Difference) -> tuple[str, str]:
    """What the two columns are called: `v1`, `v2` of one name, else the references."""
    a, b = difference.a.ref, difference.b.ref
    one, other = a.rpartition("@")[2], b.rpartition("@")[2]
    return (one, other) if a.rpartition("@")[0] == b.rpartition("@")[0] else (a, b)


def _telling(score: ScoreChange) -> list[Part]:
    """The skills that changed by more than chance, the largest changes first."""
    changed = [part for part in score.skills if part.p_adjusted < SURE]
    return sorted(changed, key=lambda part: -abs(part.counts.delta))[:SKILLS_SHOWN]


def _score_row(label: str, score: ScoreChange) -> tuple[str, ...]:
    known = score.low is not None and score.high is not None
    bare = score.unit.bare
    return (
        label,
        str(score.n),
        bare(score.base) if score.base is not None else "-",
        bare(score.before),
        bare(score.after),
        _signed(score.delta, score.unit),
        f"{bare(score.low or 0.0)} to {bare(score.high or 0.0)}" if known else "-",
        _p(score.p_adjusted),
        str(score.won),
        str(score.lost),
    )


def _part_row(label: str, part: Part) -> tuple[str, ...]:
    counts, (low, high) = part.counts, part.counts.interval
    return (
        label,
        str(counts.n),
        "",
        percent(counts.base_score),
        percent(counts.model_score),
        _signed(counts.delta, Unit()),
        f"{percent(low)} to {percent(high)}",
        _p(part.p_adjusted),
        str(counts.gained),
        str(counts.lost),
    )


def _stacked(row: tuple[str, ...], columns: tuple[str, str], width: int) -> list[str]:
    label, n, base, before, after, change, interval, p, won, lost = row
    depth = len(label) - len(label.lstrip())
    indent = " " * (depth + 2)
    beside = f" (base {base})" if base not in ("", "-") else ""
    return [
        *_wrapped(f"  {label}", width, hanging=depth + 4),
        *_wrapped(
            f"{indent}  {columns[0]} {before}, {columns[1]} {after}{beside}, n={n}", width, hanging=depth + 4
        ),
        *_wrapped(
            f"{indent}  {change} ({interval}), p {p}, won {won}, lost {lost}", width, hanging=depth + 4
        ),
    ]


def _norms(pair: Norms, width: int) -> list[str]:
    total = pair.total
    moved = sorted(pair.modules, key=lambda module: -module.change)[:MODULES_SHOWN]
    header = ("‖ΔW‖", "a", "b", "b − a", "relative", "cosine", "rank a, b")
    lines = _table([header, *(_module_row(m) for m in (*moved, total))], width)
    if lines is None:
        lines = [line for module in (*moved, total) for line in _module_lines(module, width)]
    hidden = len(pair.modules) - len(moved)
    if hidden > 0:
        lines += _wrapped(
            f"  The {len(moved)} modules that changed most; {hidden} more in --json.", width, hanging=2
        )
    return lines


def _module_row(module: ModuleChange) -> tuple[str, ...]:
    return (
        _short_module(module.module),
        f"{module.norm_a:.4g}",
        f"{module.norm_b:.4g}",
        f"{module.change:.4g}",
        "-" if module.relative is None else f"{module.relative:.3f}",
        "-" if module.cosine is None else f"{module.cosine:.3f}",
        f"{_rank(module.rank_a)}, {_rank(module.rank_b)}",
    )


def _module_lines(module: ModuleChange, width: int) -> list[str]:
    name, a, b, change, relative, cosine, ranks = _module_row(module)
    return [
        *_entry(name, width),
        *_wrapped(f"    a {a}, b {b}, b − a {change}", width, hanging=4),
        *_wrapped(f"    relative {relative}, cosine {cosine}, rank {ranks}", width, hanging=4),
    ]


def _short_module(name: str) -> str:
    """`layers.3.self_attn.q_proj`: what every module's name begins with says nothing."""
    return printable(name.removeprefix("model."))


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _standings(difference: Difference, width: int) -> list[str]:
    lines = []
    for standing in difference.standings:
        if standing.verdict is None:
            said = standing.note
        else:
            outcome = "would let it pass" if standing.verdict.passed else "would REFUSE it"
            said = f"{outcome}: {'; '.join(map(printable, standing.verdict.reasons))}"
        lines += _entry(f"{_alias(difference, standing)} {said}", width)
    return lines


def _said(difference: Difference, width: int) -> list[str]:
    lines = []
    for said in difference.said:
        outcome = "passed" if said.passed else "forced past a refusal" if said.forced else "refused"
        reasons = "; ".join(map(printable, said.reasons))
        lines += _entry(
            f"#{said.seq} {said.at[:10]} {said.ref} for {said.alias}: {outcome}: {reasons}", width
        )
    return lines


def _alias(difference: Difference, standing: Standing) -> str:
    return f"{difference.b.ref.rpartition('@')[0]}@{standing.alias}"


def _signed(delta: float, unit: Unit) -> str:
    text = unit.bare(delta)
    return f"+{text}" if delta > 0 and text != "0.0" else text


def _p(p: float | None) -> str:
    return "-" if p is None else p_text(p).removeprefix("= ").replace("< ", "<")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _entry(text: str, width: int) -> list[str]:
    return _wrapped(f"  {text}", width, hanging=4)


def _wrapped(text: str, width: int, *, hanging: int = 0) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * hanging, break_on_hyphens=False) or [text]


def _table(rows: Sequence[Sequence[str]], width: int) -> list[str] | None:
    """Columns, the first to the left and the others to the right; None where they do not fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if 2 + sum(widths) + 2 * (len(widths) - 1) > width:
        return None
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
