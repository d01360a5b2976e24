"""Build the built-in base: generate the skills, make the tokenizer, train, measure, write the folder that
`inlay.builtin.base_path` names.

    python tools/build_base.py

One command, two cores, under an hour. The length is a number of steps, not a time, so that a seed says
everything. Training runs in cycles, each with a fresh optimizer, its own draws and a cosine of its own that
starts at half the rate of the cycle before. The folder is written after each cycle; `--resume 1` goes on from
what the first one wrote.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inlay.builtin import base_path
from inlay.builtin.lexicon import CITIES, LIST_WORDS, NAMES, SPARE_WORDS
from inlay.builtin.skills import TRAINED, UNMASTERED, Item, Skill, draws, split_skills, unique_items
from inlay.builtin.tasks import HELD_OUT_WORDINGS, QUEUES, TASKS, prompt_of, rows

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
PAD, END, USER, ASSISTANT, SYSTEM = range(len(SPECIAL))
GLUE = "\u2060"  # word joiner: "no space here", so that a word keeps its one token after a quote or a bracket
PIECES = rf" ?[A-Za-z]+| ?[0-9]{{1,2}}|\n| ?[^A-Za-z0-9\s{GLUE}]{GLUE}?|{GLUE}|\s"
NOISE = 0.08  # share of training prompts with a typo, a case change or a doubled space in the wording
# between a sign and a word, or a word and a number, that stand together
GLUED = r"(?<=[^A-Za-z0-9\s])(?=[A-Za-z0-9])|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"
SYSTEM_LINES = ("You are a helpful assistant.", "Answer briefly.", "You work for acme.", "Be exact.")
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary(seed: int) -> list[str]:
    """Every piece (word with its space, number, sign) the skills and tasks use, in a fixed order."""
    texts = [f" {w} {w.upper()} {w.capitalize()}" for w in (*LIST_WORDS, *NAMES, *CITIES, *QUEUES)]
    texts += [f" {n}" for n in range(100)] + [f" {chr(c)} {chr(c).lower()}" for c in range(65, 91)]
    texts += [f"{s}{c}{g}" for c in map(chr, range(33, 127)) if not c.isalnum() for s in ("", " ")
              for g in ("", GLUE)]  # fmt: skip
    texts += [f"\n{GLUE}", *(f" {line}" for line in SYSTEM_LINES)]
    texts += [f" {w}" for w in SPARE_WORDS]
    texts += [f" {w}" for wordings in HELD_OUT_WORDINGS.values() for w in wordings]
    rng = Random(seed)
    for skill in TRAINED:
        stream = draws(skill, "train", rng)
        texts += [f" {item.prompt} {item.answer}" for item, _ in zip(stream, range(1500), strict=False)]
    for task in TASKS:
        texts += [f" {prompt_of(row)} {row['output']}" for row in rows(task, "train", 1500, seed)]
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    pieces = {p for text in texts for p, _ in split.pre_tokenize_str(text.replace("\n", "\n "))}
    # a word without its space never occurs: the normaliser glues it
    return sorted(p for p in pieces if p[0] == " " or not p[0].isalnum())


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Words, numbers to 99 and signs as single tokens, all other text as bytes; decoding is exact."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    for piece in vocabulary(seed):
        token = "".join(p for p, _ in to_bytes.pre_tokenize_str(piece))
        if token not in tokens:
            tokens.append(token)
    # no merges: a piece is in the vocabulary whole, or it is spelled in bytes
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], ignore_merges=True)
    )
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace("\n", "\n "),
        normalizers.Replace(Regex(GLUED), GLUE + " "),
        normalizers.Prepend(" "),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), to_bytes]
    )
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteLevel(), decoders.Replace(GLUE + " ", ""), decoders.Replace("\n ", "\n"),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", model_max_length=512,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(vocab: int, seed: int) -> LlamaForCausalLM:
    """A float32 Llama with tied embeddings, initialised from `seed`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocab, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True, rope_theta=10_000.0,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=None, attention_bias=False, use_cache=True,
    ))  # fmt: skip
    # on short sequences plain attention trains 1.7 times as fast on a CPU as the fused kernel
    model.set_attn_implementation("eager")
    return model


class Encoder:
    """Items to token ids, with the same layout as the chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.encode = tokenizer.backend_tokenizer.encode_batch_fast

    def __call__(self, items: list[Item], rng: Random | None = None) -> list[tuple[list[int], int]]:
        """(ids, length of the prompt) of each item; with `rng`, one in fifty gets a system line in front."""
        prompts = self.encode([i.prompt for i in items], add_special_tokens=False)
        answers = self.encode([i.answer for i in items], add_special_tokens=False)
        lines = [e.ids for e in self.encode(list(SYSTEM_LINES), add_special_tokens=False)]
        out = []
        for p, a in zip(prompts, answers, strict=True):
            head = [USER, *p.ids, END, ASSISTANT]
            if rng is not None and rng.random() < 0.02:
                head = [SYSTEM, *rng.choice(lines), END, *head]
            out.append(([*head, *a.ids, END], len(head)))
        return out


def collate(rows_: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (batch, time) int64, padded right, and labels of the same shape, -100 outside the answers.

    No attention mask is needed: the padding stands after everything a causal model looks at.
    """
    longest = max(len(ids) for ids, _ in rows_)
    ids = torch.full((len(rows_), longest), PAD)
    labels = torch.full((len(rows_), longest), -100)
    for r, (row, start) in enumerate(rows_):
        ids[r, : len(row)] = torch.tensor(row)
        labels[r, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def answer_logits(
    model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (answer tokens, vocab) and their targets (answer tokens,): the output layer runs only there."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    mask = wanted != -100
    return model.lm_head(hidden[mask]), wanted[mask]


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, encoded: list[tuple[list[int], int]]) -> float:
    """Percentage of answers whose every token, `<|end|>` included, is the argmax: greedy exact match."""
    right = 0
    for start in range(0, len(encoded), 256):
        ids, labels = collate(encoded[start : start + 256])
        logits, wanted = answer_logits(model, ids, labels)
        wrong = torch.zeros(labels[:, 1:].shape, dtype=torch.bool)
        wrong[labels[:, 1:] != -100] = logits.argmax(-1) != wanted
        right += int((~wrong.any(1)).sum())
    return 100.0 * right / len(encoded)


def batches(
    encode: Encoder, weights: dict[str, float], size: int, rng: Random, per_chunk: int = 32
) -> Iterator[list[tuple[list[int], int]]]:
    """Endless batches of about equal lengths; `weights` may be changed by the caller while this runs."""
    streams = {s.name: draws(s, "train", rng, NOISE) for s in TRAINED}
    while True:
        names = rng.choices(list(weights), list(weights.values()), k=size * per_chunk)
        encoded = encode([next(streams[n]) for n in names], rng)
        encoded.sort(key=lambda row: len(row[0]))
        chunk = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        rng.shuffle(chunk)
        yield from chunk


def optimizers(model: LlamaForCausalLM, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    if muon_lr == 0:
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.1, momentum=0.95),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def reweight(weights: dict[str, float], scores: dict[str, float]) -> None:
    """Weights follow the error on dev: what is known is refreshed, what is not is practised."""
    for name, score in scores.items():
        weights[name] = 0.08 + (1 - score / 100) ** 0.7


def train(
    model: LlamaForCausalLM, encode: Encoder, skills: tuple[Skill, ...], steps: int, size: int, lr: float,
    muon_lr: float, seed: int, every: int, begun: bool,
) -> None:  # fmt: skip
    """Train one cycle in place (`begun`: not the first); every `every` steps a line of exact match on dev."""
    dev = {s.name: encode(unique_items(s, "dev", 60, seed)) for s in skills}
    weights = {
        s.name: 2.0 if s.name in ("copy", "first_word", "last_word", "word_after") else 1.0 for s in skills
    }
    if begun:
        reweight(weights, {name: exact_match(model, rows_) for name, rows_ in dev.items()})
    stream = batches(encode, weights, size, Random(seed))
    opts = optimizers(model, lr, muon_lr)
    peaks = [[g["lr"] for g in o.param_groups] for o in opts]
    warmup, tokens, total, began = 200, 0, 0.0, time.time()
    for step in range(1, steps + 1):
        share = min(1.0, step / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for opt, peak in zip(opts, peaks, strict=True):
            for group, top in zip(opt.param_groups, peak, strict=True):
                group["lr"] = top * share
        ids, labels = collate(next(stream))
        with torch.autocast("cpu", torch.bfloat16):
            logits, wanted = answer_logits(model, ids, labels)
        loss = F.cross_entropy(logits.float(), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        tokens += ids.numel()
        total += loss.item()
        if step % every == 0 or step == steps:
            scores = {name: exact_match(model, rows_) for name, rows_ in dev.items()}
            reweight(weights, scores)
            spent = time.time() - began
            mean = sum(scores.values()) / len(scores)
            weak = " ".join(f"{n}={s:.0f}" for n, s in sorted(scores.items(), key=lambda x: x[1]) if s < 97)
            speed = f"{tokens / 1e6:.1f}M tokens {tokens / spent:.0f}/s {spent:.0f}s"
            print(
                f"step {step}/{steps} loss {total / every:.3f} {speed} mean {mean:.1f} below 97: {weak}",
                flush=True,
            )
            total = 0.0


def write(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, encode: Encoder, folder: Path,
    report: dict[str, object],
) -> dict[str, float]:  # fmt: skip
    """Round the weights to float16, measure the rounded model on unseen test items, write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().float().eval()
    scores = {s.name: round(exact_match(model, encode(unique_items(s, "test", 300, 1))), 2) for s in TRAINED}
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD, do_sample=False)
    model.half().save_pretrained(folder)
    model.float()
    config = json.loads((folder / "config.json").read_text())
    # stored in 16 bits to be small, computed in 32: a CPU is slow in float16 and adapters want the precision
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 knows as well
    settings.pop("backend", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    old = folder / "inlay.json"
    defaults = json.loads(old.read_text()).get("training_defaults", {}) if old.exists() else {}
    protected, held_out = split_skills()
    unmastered = {n: s for n, s in scores.items() if n in UNMASTERED}
    card = {"schema": 1, "training_defaults": defaults,
            "scores": {n: s for n, s in scores.items() if n not in UNMASTERED}, "unmastered": unmastered,
            "protected": list(protected),
            "held_out": list(held_out), **report}  # fmt: skip
    old.write_text(json.dumps(card, indent=2) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=base_path())
    parser.add_argument("--steps", type=int, nargs="+", default=[2500, 4200], help="steps of each cycle")
    parser.add_argument("--resume", type=int, default=0, metavar="CYCLE", help="go on after this many cycles")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="AdamW: embedding and norms")
    parser.add_argument("--muon-rate", type=float, default=0.02, help="Muon: the matrices (0: AdamW for all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements on dev")
    args = parser.parse_args()
    began = time.time()
    torch.set_num_threads(args.threads)
    tokenizer = build_tokenizer(args.seed)
    model = build_model(len(tokenizer), args.seed)
    if args.resume:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.out).state_dict())
    print(
        f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters, {len(TRAINED)} skills", flush=True
    )
    encode = Encoder(tokenizer)
    scores: dict[str, float] = {}
    for cycle in range(args.resume, len(args.steps)):
        train(model, encode, TRAINED, args.steps[cycle], args.batch_size, args.learning_rate / 2**cycle,
              args.muon_rate / 2**cycle, args.seed + cycle, args.every, begun=cycle > 0)  # fmt: skip
        report = {
            "seed": args.seed, "steps": args.steps[: cycle + 1], "batch_size": args.batch_size,
            "minutes": round((time.time() - began) / 60, 1),
            "built_with": {"torch": torch.__version__, "transformers": transformers.__version__,
                           "tokenizers": tokenizers.__version__},
        }  # fmt: skip
        scores = write(model, tokenizer, encode, args.out, report)
        model.train()
    for name, score in sorted(scores.items(), key=lambda x: x[1]):
        print(f"{score:6.2f}  {name}")
    print(f"{sum(s >= 95 for s in scores.values())} of {len(scores)} skills at 95% or more; "
          f"{(time.time() - began) / 60:.1f} minutes in all")  # fmt: skip


if __name__ == "__main__":
    main()
