"""A module and data small enough for many fits."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

import replora
from lightning_modules import ImageClassification, WarmupCosine

torch.set_num_threads(1)
CLASSES = 3
PER_STEP = WarmupCosine(warmup_epochs=1)


class TinyImages(LightningDataModule):
    """Random normalized images; the mean of an image tells its class."""

    image_size = 32

    def __init__(self, train: int = 8, evaluation: int = 7, batch_size: int = 4, padding: int = 0) -> None:
        super().__init__()
        self.sizes = {"train": train, "val": evaluation, "test": evaluation}
        self.batch_size, self.padding = batch_size, padding

    def loader(self, split: str) -> DataLoader:
        generator = torch.Generator().manual_seed(sorted(self.sizes).index(split))
        samples = []
        for index in range(self.sizes[split]):
            label = index % CLASSES
            image = torch.randn(3, 32, 32, generator=generator) + label - 1
            samples.append({"image": image, "label": label, "index": index})
        if split != "train":
            samples += [{**samples[0], "label": -1, "index": -1}] * self.padding
        sampler = DistributedSampler(samples, 1, 0, shuffle=True, seed=0) if split == "train" else None
        generator = torch.Generator().manual_seed(0)
        return DataLoader(samples, batch_size=self.batch_size, sampler=sampler, generator=generator)

    def train_dataloader(self) -> DataLoader:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")


class StopError(Exception):
    """What `StopBefore` raises."""


class StopBefore(Callback):
    """Ends the run before an epoch, as a crash would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: object) -> None:  # noqa: ARG002
        if trainer.current_epoch == self.epoch:
            raise StopError


def module(seed: int = 0, **options) -> ImageClassification:
    """A module on `vit_nano` with random weights, those of `seed`."""
    seed_everything(seed)
    adapter = options.pop("adapter", replora.RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5], dropout=0.1))
    defaults = {"num_classes": CLASSES, "backbone": "vit_nano", "pretrained": False, "schedule": PER_STEP}
    return ImageClassification(adapter=adapter, **(defaults | options))


def trainer(directory: Path, epochs: int = 1, callbacks: tuple[Callback, ...] = (), **options) -> Trainer:
    """A quiet trainer on the CPU that writes `directory/last.ckpt` after every epoch."""
    checkpoint = ModelCheckpoint(directory, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=[checkpoint, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=directory,
        **options,
    )
