"""Questions about letters, tokenized as bytes: small enough for many fits of `tests.tiny_llama`."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, seed_everything
from torch.utils.data import DataLoader, DistributedSampler

import replora
from lightning_modules import CausalLanguageModel, WarmupLinear
from replora.datasets.text.items import ChoiceItem
from tests.tiny_llama import byte_tokenizer

torch.set_num_threads(1)
PAD = 258
TASKS = ("boolq", "ARC-Easy")
LETTERS = "abcdefgh"


def question(index: int, task: str = "ARC-Easy", numbered: bool = False) -> ChoiceItem:
    """`letter c? ` with the letters themselves as options, or with the labels of numbered ones."""
    tokenizer = byte_tokenizer()
    prompt = f"letter {LETTERS[index % len(LETTERS)]}? "
    texts = ["a", "bb", "cc", "dddd"] if not numbered else [f"answer{n}" for n in range(1, 5)]
    return ChoiceItem(
        index=index,
        task=task,
        prompt=prompt,
        prompt_ids=tokenizer(prompt)["input_ids"],
        options=texts,
        option_ids=[tokenizer(text)["input_ids"] for text in texts],
        option_lengths=[len(text) for text in texts],
        answer=index % 4,
    )


class TinyTexts(LightningDataModule):
    """The right option behind each question is what is learned; the same questions are asked in validation and test."""

    def __init__(self, backbone: str, preset: str = "cloze", count: int = 8, batch_size: int = 4, padding: int = 0):
        super().__init__()
        self.tokenizer_name, self.preset, self.tasks = backbone, preset, list(TASKS)
        self.batch_size = batch_size
        numbered = preset != "cloze"
        self.items = [question(i, TASKS[i % 2], numbered) for i in range(count)]
        self.padding = [ChoiceItem(**{**vars(self.items[0]), "index": -1})] * padding

    @staticmethod
    def collate(items: list[ChoiceItem]) -> dict[str, torch.Tensor]:
        rows = [(item.prompt_ids, item.option_ids[item.answer]) for item in items]
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids, mask, labels = (torch.full((len(rows), length), fill) for fill in (PAD, 0, -100))
        for r, (prompt, answer) in enumerate(rows):
            text = [*prompt, *answer]
            ids[r, -len(text) :] = torch.tensor(text)
            mask[r, -len(text) :] = 1
            labels[r, -len(answer) :] = torch.tensor(answer)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "index": torch.tensor([item.index for item in items]),
        }

    def train_dataloader(self) -> DataLoader:
        sampler = DistributedSampler(self.items, 1, 0, shuffle=True, seed=0)
        generator = torch.Generator().manual_seed(0)
        return DataLoader(
            self.items, batch_size=self.batch_size, sampler=sampler, collate_fn=self.collate, generator=generator
        )

    def val_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        return DataLoader(self.items + self.padding, batch_size=self.batch_size, collate_fn=list, generator=generator)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return self.val_dataloader()


def language_module(folder: Path | str, seed: int = 0, **options) -> CausalLanguageModel:
    """A module on the tiny LLaMA in `folder`."""
    seed_everything(seed)
    adapter = options.pop("adapter", replora.RepLoRAConfig(rank=2, hidden=8, dropout=0.1, targets=["q", "v"]))
    return CausalLanguageModel(str(folder), adapter=adapter, schedule=WarmupLinear(2), **options)
