"""What language data sets give: batches of token ids to train on, and questions with options to evaluate on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class TextBatch(TypedDict):
    """B training texts of at most T tokens, padded on the left to the longest of the batch."""

    input_ids: Tensor  # int64 (B, T)
    attention_mask: Tensor  # int64 (B, T); 0 is padding
    labels: Tensor  # int64 (B, T); -100 where there is no loss
    index: Tensor  # int64 (B,): position in the union of the tasks, before any subset was taken; -1 for padding rows


@dataclass  # not frozen: Lightning's bf16-true copies what is in a batch field by field
class ChoiceItem:
    """One question of an evaluation; an evaluation batch is a list of them.

    Attributes:
        index: Position in the file of its task; -1 for what fills up the share of a process, which nothing may count.
        task: Name of a task of `replora.datasets.text.commonsense.COMMONSENSE_TASKS`.
        prompt: What the model reads.
        prompt_ids: Its tokens.
        options: What is scored or parsed: the labels (`answer1`, `true`, ...), or the texts of the options.
        option_ids: For each option the tokens that follow `prompt_ids`, fixed words before the option included.
        option_lengths: Characters of what follows the prompt for each option, at least 1; for `acc_norm`.
        answer: Position of the right option.
    """

    index: int
    task: str
    prompt: str
    prompt_ids: list[int]
    options: list[str]
    option_ids: list[list[int]]
    option_lengths: list[int]
    answer: int
