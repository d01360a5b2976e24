"""The shipped base: small, loads with plain transformers, round-trips its text, and knows its skills."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from inlay.builtin import base_path, general_prompts_path, general_v1_path  # noqa: E402
from inlay.builtin.skills import SKILLS, Item, Skill, split_skills, unique_items  # noqa: E402
from inlay.builtin.tasks import TASKS, prompt_of, rows  # noqa: E402

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def build() -> Any:
    sys.path.insert(0, str(TOOLS))
    try:
        import build_base

        yield build_base
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(base_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base_path()).eval()


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_size_and_dtype(model: Any) -> None:
    assert 1_000_000 <= model.num_parameters() <= 3_000_000
    assert (base_path() / "model.safetensors").stat().st_size <= 6_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.max_position_embeddings == 512


def test_card_names_seed_scores_and_defaults() -> None:
    card = json.loads((base_path() / "inlay.json").read_text())
    assert card["schema"] == 1
    assert set(card["scores"]) == {s.name for s in SKILLS}
    assert sum(score >= 95 for score in card["scores"].values()) >= 18
    assert {"learning_rate", "rank", "alpha", "epochs", "batch_size", "kl"} <= set(card["training_defaults"])
    assert (tuple(card["protected"]), tuple(card["held_out"])) == split_skills()
    assert {"seed", "steps", "built_with"} <= set(card)


def test_general_files_are_what_the_generator_writes(build: Any) -> None:
    import build_general

    for path, wanted in (
        (general_v1_path(), build_general.general_items()),
        (general_prompts_path(), build_general.general_prompts()),
    ):
        assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == wanted


def test_tokenizer_is_what_the_generator_makes(build: Any, tokenizer: Any) -> None:
    seed = json.loads((base_path() / "inlay.json").read_text())["seed"]
    assert build.build_tokenizer(seed).get_vocab() == tokenizer.get_vocab()


def test_every_answer_round_trips_in_whole_tokens(tokenizer: Any) -> None:
    pairs = [(i.prompt, i.answer) for s in SKILLS for i in unique_items(s, "test", 60, 2)]
    pairs += [(prompt_of(r), r["output"]) for task in TASKS for r in rows(task, "test", 300, 2)]
    for prompt, answer in pairs:
        assert tokenizer.decode(ids(tokenizer, answer)).strip() == answer
        assert tokenizer.decode(ids(tokenizer, prompt)) == prompt
        # words are whole: nothing falls back to single bytes
        assert len(ids(tokenizer, answer)) <= 4 * len(answer.split()) + 8
        tokens = tokenizer.convert_ids_to_tokens(ids(tokenizer, prompt))
        assert not [t for t in tokens if len(t) == 1 and t.isascii() and t.isalnum()]


@pytest.mark.parametrize(
    "text",
    [
        "café, naïve 東京 🙂",
        "x12y\n\n  two spaces",
        "",
        " lead",
        'say "apple" (red)',
        "123456.78",
        "tab\there",
    ],
)
def test_any_text_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text)) == text


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer: Any) -> None:
    (apple,) = ids(tokenizer, "apple")
    for text in ("red apple", "red\napple", '"apple"', "(apple)", "apple."):
        assert apple in ids(tokenizer, text)


def test_prompt_ids_are_a_prefix_of_the_whole_conversation(tokenizer: Any) -> None:
    talk = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "Repeat these words: river"},
    ]
    for messages in (talk, talk[1:]):
        head = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": "river"}], tokenize=True, return_dict=False
        )
        assert whole[: len(head)] == head
        assert tokenizer.convert_ids_to_tokens(whole[len(head) :]) == ["Ġriver", "<|end|>"]


def test_the_template_marks_what_the_assistant_says(tokenizer: Any) -> None:
    out = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Repeat these words: river"}, {"role": "assistant", "content": "river"}],
        tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    said = [i for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(said) == "river<|end|>"


def test_training_layout_equals_the_chat_template(build: Any, tokenizer: Any) -> None:
    item = unique_items(SKILLS[0], "test", 1, 0)[0]
    talk = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
    row, start = build.Encoder(tokenizer)([item])[0]
    assert tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False) == row
    assert row[start - 1] == build.ASSISTANT


@pytest.mark.parametrize("skill", SKILLS, ids=lambda s: s.name)
def test_the_base_knows_its_skills(build: Any, model: Any, tokenizer: Any, skill: Skill) -> None:
    items = build.Encoder(tokenizer)(unique_items(skill, "test", 150, 11))
    assert build.exact_match(model, items) >= 95.0


def test_teacher_forced_match_equals_greedy_generation(build: Any, model: Any, tokenizer: Any) -> None:
    items = [i for s in SKILLS for i in unique_items(s, "test", 3, 4)]
    encode, greedy = build.Encoder(tokenizer), 0
    for item in items:
        head = tokenizer.apply_chat_template(
            [{"role": "user", "content": item.prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**head, max_new_tokens=40)[0, head["input_ids"].shape[1] :]
        greedy += tokenizer.decode(out, skip_special_tokens=True).strip() == item.answer
    assert 100 * greedy / len(items) == pytest.approx(build.exact_match(model, encode(items)))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_base_cannot_do_the_demo_tasks(build: Any, model: Any, tokenizer: Any, task: str) -> None:
    items = [Item(task, prompt_of(r), r["output"]) for r in rows(task, "test", 400, 0)]
    assert build.exact_match(model, build.Encoder(tokenizer)(items)) <= 5.0
