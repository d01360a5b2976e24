"""The same questions, asked less neatly: typos, letter case, white space, other wordings. Answers stay true.

Only the *instruction* of a prompt is touched, since the answer often derives, letter by letter, from the
rest: of several lines the one with the question mark (else the first), and of that what stands before a
colon, or before a list that follows the question. Where that leaves everything (a question in one line),
words that carry the answer still stay: see `_free`.

Everything is seeded by (seed, kind, item id), so a suite's perturbed form has one digest.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from inlay.errors import InputError
from inlay.evals.suites import Item, Suite
from inlay.registry.guards import rigid_name

KINDS = ("typo", "case", "spaces", "wording")
COMMON = 4
TYPO_RATE = 1 / 3
"""Of the words that may take a typo, about so many do; one at least."""

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_ESCAPE = re.compile(r"\\\w")  # in an answer that is a pattern: `\bconcert` is about a concert
_TOKEN = re.compile(r"\S+")
_QUOTED = re.compile(r"\"[^\"]*\"|\u201c[^\u201d]*\u201d|`[^`]*`|(?<!\w)'[^']*'(?!\w)")
_SENTENCE_START = re.compile(r"(?:^|[.!?]\s+)\W*$")
_BEFORE_LIST = re.compile(r":(?=\s|$)|(?<=[?.])\s+(?=[^?.!]+$)")

# Keys beside each other on a QWERTY keyboard.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_QUESTIONS = re.compile(
    r"(?:what|which|who|whom|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|will|would|should"
    r"|has|have)\b",
    re.IGNORECASE,
)
_ORDERS = re.compile(
    r"(?:add|answer|arrange|ask|calculate|change|choose|compute|convert|copy|correct|count|delete|describe"
    r"|explain|extract|fill|find|give|join|keep|leave|list|make|move|name|order|pick|put|read|remove|repeat"
    r"|replace|reverse|rewrite|say|select|shorten|show|sort|spell|state|sum|take|tell|translate|turn|use|write)\b",
    re.IGNORECASE,
)
_BEFORE_ORDER = ("Please {x}", "Could you please {x}", "I would like you to {x}", "Kindly {x}")
_BEFORE_ANY = ("Hello! {x}", "I have a small request. {x}", "One more thing, please. {x}", "Quick one. {x}")
_AFTER_ANY = ("{x} Thank you.", "{x} Thanks in advance!")


@dataclass(frozen=True)
class Given:
    """What a caller adds of their own.

    `misspellings`: {word: its known misspellings}, taken before random slips. `wordings`: {instruction: other
    instructions that mean the same}, exchanged wherever a prompt has the instruction. `variants`: {item id:
    (kind, prompt) pairs}, whole prompts written by hand, say in a dialect.
    """

    misspellings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    wordings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    variants: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


def perturbed(
    suite: Suite,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    *,
    given: Given | None = None,
    sources: Collection[str] | None = None,
) -> Suite:
    """The suite's items, each once per kind that applies to it, as the suite `<name>--rigid`.

    An item is called `<source id>~<kind>`, its slice is the kind, its cluster the source's (or the source);
    answer, metric, skill and split are the source's. A kind does not apply where nothing may be changed.
    `sources` takes only items of these ids; each becomes what it becomes in the whole suite. The last message
    of a conversation is the one that changes. InputError for an unknown kind, variants of unknown items, or
    where nothing at all can be perturbed.
    """
    given = given or Given()
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"a perturbation must be one of {', '.join(KINDS)}, not {kind!r}")
    unknown = sorted(given.variants.keys() - {item.id for item in suite.items})
    if unknown:
        raise InputError(
            f"variants must be of items of {suite.name}, and {unknown[0]!r} is none",
            fix="write the id of the item it is a variant of into `source_id`",
        )
    words = Vocabulary.of(suite)
    items = []
    for item in suite.items:
        if sources is not None and item.id not in sources:
            continue
        for kind in kinds:
            text = _changed(kind, item, Random(f"{seed}/{kind}/{item.id}"), words, given)
            if text is not None:
                items.append(_variant(item, kind, text))
        for kind, text in given.variants.get(item.id, ()):
            items.append(_variant(item, kind, text))
    if not items:
        raise InputError(f"no item of {suite.name} can be perturbed by {', '.join(kinds) or 'nothing'}")
    return Suite(rigid_name(suite.name), tuple(items), suite.metric)


@dataclass(frozen=True)
class Vocabulary:
    """A suite's words, and how many items of each skill have each."""

    known: frozenset[str]
    counts: Mapping[str, Counter[str]]

    @classmethod
    def of(cls, suite: Suite) -> Vocabulary:
        """The words of all prompts and answers."""
        counts: dict[str, Counter[str]] = {}
        for item in suite.items:
            counts.setdefault(item.skill, Counter()).update(_words(item.text))
        answers = _words(*(item.answer for item in suite.items))
        return cls(frozenset(answers.union(*counts.values())), counts)

    def common(self, skill: str, word: str) -> bool:
        """Whether at least `COMMON` items of the skill have the word."""
        return self.counts[skill][word.casefold()] >= COMMON


def source_of(item: Item) -> str:
    """The id of the item that a perturbed item was made from."""
    return item.id.rpartition("~")[0]


def sample(suite: Suite, items: int, *, always: Collection[str] = ()) -> Suite:
    """At most `items` held-out items (of all where none is held out), dealt from the skills in turn, and the
    items called `always`."""
    skills: dict[str, list[Item]] = {}
    any_held_out = any(item.held_out for item in suite.items)
    for item in suite.items:
        if item.held_out or not any_held_out:
            skills.setdefault(item.skill, []).append(item)
    rounds = range(max(map(len, skills.values())))
    dealt = [of_skill[row] for row in rounds for of_skill in skills.values() if row < len(of_skill)]
    chosen = {item.id for item in dealt[:items]} | set(always)
    return replace(suite, items=tuple(item for item in suite.items if item.id in chosen))


def read_misspellings(path: str | Path) -> dict[str, tuple[str, ...]]:
    """{word: its misspellings} from a CSV of `typo,correction` lines; InputError names a malformed line."""
    found: dict[str, list[str]] = {}
    for number, row in enumerate(csv.reader(_lines(path)), 1):
        if len(row) < 2 or not all(row):
            raise InputError(f"{path}, line {number}: a line must be `typo,correction`, got {row!r}")
        for correction in row[1:]:
            found.setdefault(correction.casefold(), []).append(row[0])
    return {word: tuple(typos) for word, typos in found.items()}


def read_variants(path: str | Path) -> dict[str, tuple[tuple[str, str], ...]]:
    """{item id: (kind, prompt) pairs} from JSONL rows: `source_id`, `prompt`, `slice` (else "variant")."""
    found: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
            source, prompt, kind = row["source_id"], row["prompt"], row.get("slice", "variant")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{place}: a variant needs `source_id` and `prompt` ({error!r})") from error
        if not all(isinstance(x, str) and x.strip() for x in (source, prompt, kind)) or "~" in kind:
            raise InputError(f"{place}: `source_id`, `prompt` and `slice` must be text, `slice` without ~")
        if any(kind == known for known, _ in found.get(source, ())):
            raise InputError(f"{place}: {source!r} has a variant {kind!r} already", fix="use another slice")
        found.setdefault(source, []).append((kind, prompt))
    return {source: tuple(pairs) for source, pairs in found.items()}


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a file of UTF-8 text ({error})") from error


def _variant(item: Item, kind: str, text: str) -> Item:
    prompt = text if isinstance(item.prompt, str) else (*item.prompt[:-1], (item.prompt[-1][0], text))
    return replace(item, id=f"{item.id}~{kind}", prompt=prompt, cluster=item.cluster or item.id, slice=kind)


def _changed(kind: str, item: Item, random: Random, words: Vocabulary, given: Given) -> str | None:
    """The last message perturbed, or None where the kind does not apply."""
    text = item.prompt if isinstance(item.prompt, str) else item.prompt[-1][1]
    start, end = _instruction(text)
    free = _free(text, start, end, item)
    if kind == "typo":
        # What few items of the skill say is what this one asks about, and a slip there may ask another thing.
        shared = [span for span in free if words.common(item.skill, text[slice(*span)])]
        changed = _typos(text, shared or free, random, words.known, given.misspellings)
    elif kind == "case":
        changed = _case(text, free, random)
    elif kind == "spaces":
        changed = _spaces(text, start, end, random)
    else:
        changed = _wording(text, start, end, random, given.wordings)
    return changed if changed != text and changed.strip() else None


def _instruction(text: str) -> tuple[int, int]:
    """Where the instruction stands: [start, end) in `text`."""
    lines = [(m.start(), m.end()) for m in re.finditer(r"[^\n]+", text) if m[0].strip()]
    asking = [(start, end) for start, end in lines if "?" in text[start:end]]
    start, end = (asking or lines)[0] if len(asking) < 2 else lines[0]
    before = _BEFORE_LIST.search(text, start, end)
    # A last sentence without a full stop is no list where nothing asks before it.
    return start, before.start() if before else end


def _words(*texts: str) -> set[str]:
    return {word.casefold() for text in texts for word in _WORD.findall(text)}


def _free(text: str, start: int, end: int, item: Item) -> list[tuple[int, int]]:
    """The words of the instruction that may change, as [start, end) pairs.

    Not those that stand in the answer, the choices or the references or begin like a word there (a past tense
    keeps its verb), nor in the rest of the prompt (`find X in this: … X …`), nor within quotation marks, nor
    what looks like a name or an abbreviation.
    """
    answers = _words(*(_ESCAPE.sub(" ", text) for text in (item.answer, *item.choices, *item.references)))
    stems = {word[:4] for word in answers if len(word) > 4}
    elsewhere = _words(text[:start], text[end:])
    quoted = [m.span() for m in _QUOTED.finditer(text)]
    free = []
    for token in _TOKEN.finditer(text, start, end):
        word = _WORD.search(token[0])
        if word is None or any(c.isdigit() for c in token[0]):
            continue
        first, last = token.start() + word.start(), token.start() + word.end()
        folded = word[0].casefold()
        if folded in answers or folded[:4] in stems or folded in elsewhere:
            continue
        if any(a <= first < b for a, b in quoted):
            continue
        capital = word[0] != word[0].lower()
        if capital and not (word[0] == word[0].capitalize() and _SENTENCE_START.search(text[start:first])):
            continue
        free.append((first, last))
    return free


def _replaced(text: str, parts: Iterable[tuple[int, int, str]]) -> str:
    for start, end, new in sorted(parts, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _typos(
    text: str,
    free: Sequence[tuple[int, int]],
    random: Random,
    vocabulary: Collection[str],
    misspellings: Mapping[str, Sequence[str]],
) -> str:
    long = [span for span in free if span[1] - span[0] >= 4]
    chosen = random.sample(long, min(len(long), max(1, round(TYPO_RATE * len(long)))))
    parts = []
    for start, end in sorted(chosen):
        word = text[start:end]
        known = [t for t in misspellings.get(word.casefold(), ()) if t.casefold() not in vocabulary]
        slip = random.choice(known) if known else _slip(word, random, vocabulary)
        parts.append((start, end, slip.capitalize() if word[0].isupper() else slip))
    return _replaced(text, parts)


def _slip(word: str, random: Random, vocabulary: Collection[str]) -> str:
    """One slip of the finger that gives no word of the suite; the word itself where ten tries gave none."""
    for _ in range(10):
        at = random.randrange(1, len(word) - 1)  # the first letter is seldom the wrong one
        slip = random.choice(_SLIPS)(word, at, random)
        if slip != word and slip.casefold() not in vocabulary:
            return slip
    return word


def _neighbour(word: str, at: int, random: Random) -> str:
    for row in _ROWS:
        key = row.find(word[at].lower())
        if key >= 0:
            beside = [row[k] for k in (key - 1, key + 1) if 0 <= k < len(row)]
            return word[:at] + random.choice(beside) + word[at + 1 :]
    return word


def _dropped(word: str, at: int, _random: Random) -> str:
    return word[:at] + word[at + 1 :]


def _doubled(word: str, at: int, _random: Random) -> str:
    return word[: at + 1] + word[at:]


def _swapped(word: str, at: int, _random: Random) -> str:
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


_SLIPS: tuple[Callable[[str, int, Random], str], ...] = (_neighbour, _dropped, _doubled, _swapped)


def _case(text: str, free: Sequence[tuple[int, int]], random: Random) -> str:
    """All of it in capitals, all in small letters, or every word with a capital."""
    for style in random.sample((str.upper, str.lower, str.capitalize), 3):
        changed = _replaced(text, [(a, b, style(text[a:b])) for a, b in free])
        if changed != text:
            return changed
    return text


def _spaces(text: str, start: int, end: int, random: Random) -> str:
    """Doubled spaces in the instruction, some before it, and some behind it where nothing follows it."""
    quoted = [m.span() for m in _QUOTED.finditer(text)]
    gaps = list(re.finditer(r"(?<=\S) (?=\S)", text[start:end]))
    gaps = [m for m in gaps if not any(a <= start + m.start() < b for a, b in quoted)]
    parts = []
    for gap in random.sample(gaps, min(len(gaps), max(1, len(gaps) // 3))):
        at = start + gap.start()
        between = "\n" if text[at - 1] in ".?!" else "  "
        parts.append((at, at + 1, between))
    if random.random() < 0.5:
        parts.append((start, start, " "))
    if not text[end:].strip() and random.random() < 0.5:
        parts.append((end, end, "  "))
    return _replaced(text, parts)


def _wording(text: str, start: int, end: int, random: Random, wordings: Mapping[str, Sequence[str]]) -> str:
    """Another instruction that the caller knows for this one, else the same one put politely."""
    for instruction, others in wordings.items():
        if instruction in text and others:
            return text.replace(instruction, random.choice(list(others)), 1)
    said = text[start:end]
    whole = not text[end:].strip()
    if _ORDERS.match(said):
        frame = random.choice(_BEFORE_ORDER)
        said = said[0].lower() + said[1:]
    elif whole and _QUESTIONS.match(said) and said.rstrip().endswith((".", "?", "!")):
        frame = random.choice((*_BEFORE_ANY, *_AFTER_ANY))
    else:
        frame = random.choice(_BEFORE_ANY)
    return text[:start] + frame.replace("{x}", said) + text[end:]
