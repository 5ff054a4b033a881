"""The samples of language data sets: texts for training, and questions with options for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypedDict, cast

import numpy as np
from torch import Tensor

from replora.datasets.samples import NO_LOSS, PADDING_INDEX


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


class CountedTextBatch(TextBatch):
    """A batch of texts with what a training step must know of it without asking the device."""

    first: int  # first column that predicts a token with a loss
    tokens: int  # number of tokens that are no padding


def with_counts(batch: TextBatch | CountedTextBatch) -> CountedTextBatch:
    """A batch with its counts, which are made here if it has none, best while it is in host memory.

    As in transformers, and so LLM-Adapters, a row's first token has a loss where padding stands before it: it is
    predicted from the padding. In a row without padding nothing predicts it.
    """
    if "first" in batch:
        return cast(CountedTextBatch, batch)
    labels = batch["labels"]
    columns = (labels[:, 1:] != NO_LOSS).any(dim=0).nonzero()
    # Without labels one column does: every parameter gets a gradient of 0, which processes average as any other.
    first = int(columns[0]) if len(columns) else max(0, labels.shape[1] - 2)
    return {**batch, "first": first, "tokens": int(batch["attention_mask"][batch["index"] >= 0].sum())}


@dataclass  # not frozen: Lightning's bf16-true copies the fields of samples
class ChoiceItem:
    """One question of an evaluation; an evaluation batch is a list of them."""

    index: int  # position in the file of its task; -1 for padding, which nothing counts
    task: str  # name of a task of `COMMONSENSE_TASKS`
    prompt: str  # input of the model
    prompt_ids: list[int]  # tokens of the prompt
    options: list[str]  # labels (`answer1`, `true`, ...) or texts of the options, to score or parse
    # tokens that follow `prompt_ids` for each option, including fixed words before the option
    option_ids: list[list[int]]
    option_lengths: list[int]  # characters that follow the prompt for each option (>= 1), for `acc_norm`
    answer: int  # position of the right option

    def padding(self) -> ChoiceItem:
        """The question as padding."""
        return replace(self, index=PADDING_INDEX)
