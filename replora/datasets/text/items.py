"""The samples of language data sets: texts for training, and questions with options for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict

import numpy as np
from torch import Tensor

from replora.datasets.samples import PADDING_INDEX


class TextRow(NamedTuple):
    """One training text: its index in the union, its tokens and the first token with a loss."""

    position: int
    ids: Sequence[int] | np.ndarray
    loss_from: int

    def padding(self) -> TextRow:
        """A text without loss, of one token: attention over no token is not a number."""
        return TextRow(PADDING_INDEX, self.ids[:1], 1)


class TextBatch(TypedDict):
    """B training texts of at most T tokens, padded on the left to the longest of the batch."""

    input_ids: Tensor  # int64 (B, T)
    attention_mask: Tensor  # int64 (B, T); 0 is padding
    labels: Tensor  # int64 (B, T); -100 where there is no loss
    index: Tensor  # int64 (B,): position in the union of the tasks, before any subset was taken; -1 for padding rows


@dataclass  # not frozen: Lightning's bf16-true copies the fields of samples
class ChoiceItem:
    """One question of an evaluation; an evaluation batch is a list of them.

    Attributes:
        index: Position in the file of its task; -1 for padding, which nothing counts.
        task: Name of a task of `COMMONSENSE_TASKS`.
        prompt: Input of the model.
        prompt_ids: Tokens of the prompt.
        options: Labels (`answer1`, `true`, ...) or texts of the options, to score or parse.
        option_ids: Tokens that follow `prompt_ids` for each option, including fixed words before the option.
        option_lengths: Characters that follow the prompt for each option (>= 1), for `acc_norm`.
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

    def padding(self) -> ChoiceItem:
        """The question as padding."""
        return replace(self, index=PADDING_INDEX)
