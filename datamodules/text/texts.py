"""Training texts and questions of a language model, as tokens in memory."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Dataset

from replora.datasets.common.packed import Packed
from replora.datasets.samples import PADDING_INDEX
from replora.datasets.text.commonsense import CommonsenseRecord, duplicate_count
from replora.datasets.text.items import ChoiceItem, TextRow
from replora.datasets.text.prompts import MULTIPLES, Preset, collate, training_tokens
from replora.errors import RepLoRAError


class Questions(Dataset[ChoiceItem]):
    """Questions of an evaluation, the longest first: a batch holds like lengths, and memory suffices or not at once.

    The length is that of a question with all its options, which share a row of the batch.
    """

    collate = list

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


def _encode(row: TextRow) -> bytes:
    return np.concatenate([[row.position, row.loss_from], row.ids]).astype(np.int32).tobytes()


def _decode(content: bytes) -> TextRow:
    numbers = np.frombuffer(bytearray(content), np.int32)  # of a bytearray, so that they can be written to
    return TextRow(int(numbers[0]), numbers[2:], int(numbers[1]))


class TrainingTexts(Dataset[TextRow]):
    """Training texts as tokens in memory.

    Args:
        records: Training records.
        positions: Indices of the records.
        tokenizer: Tokenizer of transformers.
        preset: Preset of the texts.
        cutoff: Largest number of tokens in a text (>= 2). `llm_adapters` truncates longer ones, the other presets leave
            them out.
        pad_id: Token of the padding, which is masked.

    Raises:
        RepLoRAError: Nothing is left, or a record does not have the form of its task.
    """

    def __init__(
        self,
        records: list[CommonsenseRecord],
        positions: list[int],
        tokenizer: Any,
        preset: Preset,
        cutoff: int,
        pad_id: int,
    ) -> None:
        self.pad_id = pad_id
        self.collate = partial(collate, pad_id=pad_id, multiple=MULTIPLES[preset])
        leave_out = preset != "llm_adapters"
        rows: list[TextRow] = []
        self.over_length = 0
        self.duplicates = duplicate_count(records)
        for position, text in zip(positions, training_tokens(tokenizer, records, preset, cutoff), strict=True):
            self.over_length += not text.complete
            if text.complete or not leave_out:
                rows.append(TextRow(position, np.array(text.ids, dtype=np.int32), text.loss_from))
        self.rows = Packed(rows, _encode, _decode)
        self.left_out = len(records) - len(self.rows)
        if not self.rows:
            raise RepLoRAError(
                f"All {len(records):,} training texts are longer than cutoff={cutoff} tokens, and the preset "
                f"{preset!r} leaves them out. Increase --data.cutoff."
            )
        self.lengths = [len(ids) for _, ids, _ in self.rows]
        rank_zero_info(
            f"{len(self.rows):,} training texts, {sum(self.lengths):,} tokens ({self.labeled_tokens:,} with a loss); "
            f"{self.over_length:,} longer than {cutoff} tokens, {'left out' if leave_out else 'cut off'}; "
            f"{self.duplicates:,} repeat the instruction of another"
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @property
    def largest_id(self) -> int:
        """The largest token id, that of the padding included."""
        return max(self.pad_id, *(int(np.max(ids)) for _, ids, _ in self.rows))

    @property
    def labeled_tokens(self) -> int:
        return sum(len(ids) - loss_from for _, ids, loss_from in self.rows)

    def describe(self) -> dict[str, int]:
        return {
            "tokens": sum(self.lengths),
            "labelled_tokens": self.labeled_tokens,
            "longest": self.longest,
            "over_length": self.over_length,
            "left_out": self.left_out,
            "duplicates": self.duplicates,
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TextRow:
        """The text at `index`, or padding for -1."""
        return self.rows[index] if index != PADDING_INDEX else self.rows[0].padding()
