"""Training texts and questions of a language model, as tokens in memory."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from replora.datasets.text.commonsense import (
    CommonsenseRecord,
    duplicate_count,
)
from replora.datasets.text.items import ChoiceItem
from replora.datasets.text.prompts import Preset, training_tokens
from replora.errors import RepLoRAError


class Questions(Dataset[ChoiceItem]):
    """Questions of an evaluation, the longest first: a batch holds like lengths, and memory suffices or not at once.

    The length is that of a question with all its options, which share a row of the batch.
    """

    def __init__(self, items: list[ChoiceItem]) -> None:
        self.items = sorted(items, key=lambda item: -(len(item.prompt_ids) + sum(map(len, item.option_ids))))

    @property
    def longest(self) -> int:
        """Tokens of the longest question with an option."""
        return max((len(i.prompt_ids) + max(map(len, i.option_ids)) for i in self.items), default=0)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max((max((*i.prompt_ids, *chain(*i.option_ids)), default=0) for i in self.items), default=0)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ChoiceItem:
        return self.items[index]


class TrainingTexts(Dataset[tuple[int, np.ndarray, int]]):
    """Training texts as tokens, all in memory: (index, tokens, first token with a loss).

    Args:
        records: What they are made of.
        positions: Their indices.
        tokenizer: Of transformers.
        preset: Which text.
        cutoff: Tokens of a text at most; `llm_adapters` cuts longer ones, the other presets leave them out.

    Raises:
        RepLoRAError: Nothing is left, or a record has not the form of its task.
    """

    padding: tuple[int, list[int], int]

    def __init__(
        self,
        records: list[CommonsenseRecord],
        positions: list[int],
        tokenizer: Any,
        preset: Preset,
        cutoff: int,
    ) -> None:
        leave_out = preset != "llm_adapters"
        self.rows: list[tuple[int, np.ndarray, int]] = []
        self.over_length = 0
        self.duplicates = duplicate_count(records)
        for position, text in zip(positions, training_tokens(tokenizer, records, preset, cutoff), strict=True):
            self.over_length += not text.whole
            if text.whole or not leave_out:
                self.rows.append((position, np.array(text.ids, dtype=np.int32), text.loss_from))
        self.left_out = len(records) - len(self.rows)
        if not self.rows:
            raise RepLoRAError(
                f"All {len(records):,} training texts are longer than cutoff={cutoff} tokens, and the preset "
                f"{preset!r} leaves such out. Raise --data.cutoff."
            )
        self.lengths = [len(ids) for _, ids, _ in self.rows]
        rank_zero_info(
            f"{len(self.rows):,} training texts, {sum(self.lengths):,} tokens ({self.labelled_tokens:,} with a loss); "
            f"{self.over_length:,} longer than {cutoff} tokens, {'left out' if leave_out else 'cut off'}; "
            f"{self.duplicates:,} repeat the instruction of another"
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @property
    def largest_id(self) -> int:
        """The largest token id."""
        return max(int(ids.max()) for _, ids, _ in self.rows)

    @property
    def labelled_tokens(self) -> int:
        return sum(len(ids) - loss_from for _, ids, loss_from in self.rows)

    def describe(self) -> dict[str, int]:
        return {
            "tokens": sum(self.lengths),
            "labelled_tokens": self.labelled_tokens,
            "longest": self.longest,
            "over_length": self.over_length,
            "left_out": self.left_out,
            "duplicates": self.duplicates,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any, int]:
        return self.rows[index] if index >= 0 else self.padding
