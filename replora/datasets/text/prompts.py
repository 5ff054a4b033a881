"""What a language model reads of a commonsense question, under three named presets, as strings and as tokens.

`llm_adapters` is byte for byte what LLM-Adapters and DoRA train and evaluate with (finetune.py and
commonsense_evaluate.py of https://github.com/AGI-Edgerunners/LLM-Adapters and https://github.com/NVlabs/DoRA): lines
indented by 16 spaces, and three differences between training and evaluation: two spaces or one after "request.", 16
spaces or none in the line before "### Response:", and the evaluation's text ends with 16 spaces, which most tokenizers
read as a token that training never shows. The loss is on every token, texts are cut at `cutoff`.

`clean` has one text for both, loss on the answer and the end token alone, and leaves rows out that are too long.

`cloze` does not show the options: `Question: ...\\nAnswer:`, followed by the text of an option, which is what is
learned and scored. BoolQ's answers are " yes" and " no". In WinoGrande the option fills the blank: the model reads
`Sentence: ` and the words before the blank, and the option with all words after it is scored (what Trinh and Le 2018,
arXiv 1806.02847, call full scoring; lm-evaluation-harness scores the words after the option alone).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch

from replora.datasets.samples import NO_LOSS
from replora.datasets.text.commonsense import OUTPUT, CommonsenseRecord, commonsense_task, record_error
from replora.datasets.text.items import ChoiceItem, TextBatch
from replora.errors import RepLoRAError

Preset = Literal["llm_adapters", "clean", "cloze"]

CUTOFF = 256
MULTIPLES: dict[Preset, int] = {"llm_adapters": 8, "clean": 1, "cloze": 1}  # of which a batch's length is one

_I = " " * 16
_TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_LLM_ADAPTERS_TRAINING = f"{_TASK}  \n\n{_I}### Instruction:\n{_I}{{}}\n{_I}\n{_I}### Response:\n{_I}"
_LLM_ADAPTERS_EVALUATION = f"{_TASK} \n\n{_I}### Instruction:\n{_I}{{}}\n\n{_I}### Response:\n{_I}"
_CLEAN = f"{_TASK}\n\n### Instruction:\n{{}}\n\n### Response:"
_CLOZE = "Question: {}\nAnswer:"
_CLOZE_SENTENCE = "Sentence: {}"
_BLANK = "_"

# The first match counts, without regard to words: of "answer12" that is answer1, as in LLM-Adapters.
_ANSWERS = {
    "Answer": r"answer[1-5]",
    "Solution": r"solution[12]",
    "Ending": r"ending[1-4]",
    "Option": r"option[12]",
    "": r"true|false",
}


def parse_answer(task: str, text: str) -> str:
    """The first label of `task`, in lower case, in the output of a model, or "" if there is none."""
    found = re.search(_ANSWERS[commonsense_task(task).word], text)
    return found[0] if found else ""


# --- strings


@dataclass(frozen=True)
class ChoiceText:
    """A question as text."""

    prompt: str  # what the model reads
    options: tuple[str, ...]  # labels, or in `cloze` the options' texts
    continuations: tuple[str, ...]  # what follows the prompt for each option
    answer: int  # position of the right option


def training_text(record: CommonsenseRecord, preset: Preset) -> tuple[str, str]:
    """Prompt and answer; the training text is the one followed by the other.

    Raises:
        RecordError: The record does not have the form of its task.
    """
    if preset == "llm_adapters":
        return _LLM_ADAPTERS_TRAINING.format(record.instruction), record.output
    text = choice_text(record, preset)
    return text.prompt, text.continuations[text.answer]


def choice_text(record: CommonsenseRecord, preset: Preset) -> ChoiceText:
    """The question of an evaluation, with what the model might say.

    Raises:
        RecordError: The record does not have the form of its task.
    """
    question = record.question
    answer = question.labels.index(record.answer)
    if preset == "llm_adapters":
        prompt, said = _LLM_ADAPTERS_EVALUATION.format(record.instruction), OUTPUT
    elif preset == "clean":
        prompt, said = _CLEAN.format(record.instruction), f" {OUTPUT}"
    elif record.task == "winogrande":
        return _filled_blank(record, answer)
    else:
        texts = ("yes", "no") if not question.options else tuple(option.strip() for option in question.options)
        asked = question.text if question.options else f"{question.text}?"
        return ChoiceText(_CLOZE.format(asked.strip()), texts, tuple(f" {text}" for text in texts), answer)
    return ChoiceText(prompt, question.labels, tuple(f"{said}{label}" for label in question.labels), answer)


def _filled_blank(record: CommonsenseRecord, answer: int) -> ChoiceText:
    question = record.question
    before, blank, after = question.text.partition(_BLANK)
    if not blank:
        raise record_error(record.file, record.index, f"the sentence has no blank {_BLANK!r}", record.instruction)
    options = tuple(option.strip() for option in question.options)
    prompt = _CLOZE_SENTENCE.format(before).rstrip()
    return ChoiceText(prompt, options, tuple(f" {option}{after}" for option in options), answer)


# --- tokens


@dataclass(frozen=True)
class TrainingTokens:
    """One training text."""

    ids: list[int]  # its tokens
    loss_from: int  # the first token with a loss
    complete: bool  # whether the text was not truncated


def training_tokens(
    tokenizer: Any, records: Sequence[CommonsenseRecord], preset: Preset, cutoff: int = CUTOFF
) -> list[TrainingTokens]:
    """Training texts as tokens, at most `cutoff` (>= 2) of each.

    `llm_adapters`: loss on all tokens, and an end token if the text is shorter than `cutoff`; longer texts lose their
    end, which is the answer. `clean`: loss on the answer and the end token. `cloze`: loss on the option, no end token.
    The caller leaves out incomplete texts of the last two.

    Raises:
        RecordError: A record does not have the form of its task.
    """
    if not records:
        return []
    texts = [training_text(record, preset) for record in records]
    full = _encode(tokenizer, [prompt + answer for prompt, answer in texts])
    end = [] if preset == "cloze" else [tokenizer.eos_token_id]
    if end == [None]:
        raise RepLoRAError(
            f"The preset {preset!r} ends a text with the tokenizer's end token, and this tokenizer has none. Set "
            "eos_token in its tokenizer_config.json, or --data.preset cloze."
        )
    if preset == "llm_adapters":
        ended = [ids + end if len(ids) < cutoff and ids[-1:] != end else ids for ids in full]
        return [TrainingTokens(ids[:cutoff], 0, len(ids) <= cutoff) for ids in ended]
    prompts = _encode(tokenizer, [prompt for prompt, _ in texts])
    return [
        TrainingTokens((ids + end)[:cutoff], _shared([prompt, ids]), len(ids + end) <= cutoff)
        for prompt, ids in zip(prompts, full, strict=True)
    ]


def choice_items(tokenizer: Any, records: Sequence[CommonsenseRecord], preset: Preset) -> list[ChoiceItem]:
    """Questions as tokens, without truncation.

    If the option changes the last token of a prompt, the prompt ends before that token, so that prompt and option are
    exactly the tokens of the training text. Under `llm_adapters` the options are separate texts after the prompt.

    Raises:
        RecordError: A record does not have the form of its task.
    """
    if not records:
        return []
    texts = [choice_text(record, preset) for record in records]
    prompts = _encode(tokenizer, [text.prompt for text in texts])
    if preset == "llm_adapters":
        said = sorted({said for text in texts for said in text.continuations})
        alone = dict(zip(said, _encode(tokenizer, said, special=False), strict=True))
        joined = [[ids + alone[said] for said in text.continuations] for ids, text in zip(prompts, texts, strict=True)]
    else:
        full = iter(_encode(tokenizer, [text.prompt + said for text in texts for said in text.continuations]))
        joined = [[next(full) for _ in text.continuations] for text in texts]
    items = []
    for record, text, prompt, options in zip(records, texts, prompts, joined, strict=True):
        start = _shared([prompt, *options])
        items.append(
            ChoiceItem(
                index=record.index,
                task=record.task,
                prompt=text.prompt,
                prompt_ids=prompt[:start],
                options=list(text.options),
                option_ids=[ids[start:] for ids in options],
                option_lengths=[max(1, len(said.strip())) for said in text.continuations],
                answer=text.answer,
            )
        )
    return items


def collate(rows: Sequence[tuple[int, Sequence[int], int]], pad_id: int, multiple: int = 1) -> TextBatch:
    """Training texts as a batch, padded with `pad_id` on the left to a multiple of `multiple` tokens.

    `rows` are `TextRow`s: index, tokens and the first token with a loss.
    """
    longest = max(len(ids) for _, ids, _ in rows)
    length = -(-longest // multiple) * multiple
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, NO_LOSS)
    for row, (_, ids, loss_from) in enumerate(rows):
        start = length - len(ids)
        input_ids[row, start:] = torch.as_tensor(ids)
        mask[row, start:] = 1
        labels[row, start + loss_from :] = input_ids[row, start + loss_from :]
    index = torch.tensor([index for index, _, _ in rows])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "index": index}


def _encode(tokenizer: Any, texts: list[str], special: bool = True) -> list[list[int]]:
    """Token ids of each text, with the tokens that begin one and without one that the tokenizer puts at its end."""
    options = {"add_special_tokens": special, "padding": False, "truncation": False, "verbose": False}
    ends = tokenizer(["a"], **options)["input_ids"][0][-1:] == [tokenizer.eos_token_id]
    return [ids[:-1] if ends else ids for ids in tokenizer(texts, **options)["input_ids"]]


def _shared(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))
