"""A training step reads nothing from the device: on a GPU, each such question would make the host wait for all kernels.

What waits on a GPU is visible on a CPU too, as the operator that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

import replora
from datamodules import ImageTextDataModule
from tests.lightning_modules.helpers import TinyImages, module, trainer
from tests.lightning_modules.test_video_classification import TinyVideos
from tests.lightning_modules.test_video_classification import module as video_module
from tests.lightning_modules.test_vision_language import home as vl_home  # noqa: F401
from tests.lightning_modules.test_vision_language import module_of as vl_module
from tests.lightning_modules.tiny_texts import TinyTexts, language_module
from tests.tiny_llama import write_tiny_llama

Check = Callable[..., None]
# Once per forward pass transformers looks whether any token is padding, and takes the causal kernel if none is.
MASKS = "transformers/masking_utils.py"


@pytest.fixture
def check(benchmark: Callable[[str], ModuleType]) -> Check:
    reads = benchmark("device_sync").Reads((MASKS,))

    def check(directory: Path, model: LightningModule, data: Any, **options: Any) -> None:
        watch = Watch(reads)
        trainer(directory, 1, (watch,), limit_val_batches=0, log_every_n_steps=1000, **options).fit(model, data)
        assert watch.steps > 0
        assert not reads.found

    return check


class Watch(Callback):
    """Watches forward and backward passes, after the first, which fills caches."""

    def __init__(self, reads: TorchDispatchMode) -> None:
        self.reads, self.steps = reads, 0

    def on_train_batch_start(self, _trainer: Trainer, _module: LightningModule, _batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            self.reads.__enter__()
            self.steps += 1

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx > 0:
            self.reads.__exit__(None, None, None)


def test_what_waits_is_seen(benchmark: Callable[[str], ModuleType]) -> None:
    reads_of = benchmark("device_sync").Reads
    values = torch.arange(4.0)
    with reads_of() as reads:
        values.sum().item()
        values[values > 1]
        values[torch.tensor([0, 1])] + 1
    assert [found.split(" at ")[0] for found in reads.found] == ["_local_scalar_dense", "index"]
    assert all(f" at {Path(__file__).name}:" in found for found in reads.found)
    with reads_of((Path(__file__).name,)) as allowed:
        values.sum().item()
    assert not allowed.found


# Mixup is not here: torchvision draws its weights on the host, which looks the same on a CPU.
@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced", "label_smoothing": 0.1}], ids=str)
def test_images(check: Check, options: dict[str, Any], tmp_path: Path) -> None:
    data = TinyImages(train=12, batch_size=4)
    data.training_counts = lambda: [4, 4, 4]
    check(tmp_path, module(**options), data)


def test_videos(check: Check, tmp_path: Path) -> None:
    check(tmp_path, video_module(), TinyVideos([0, 1, 2, 0, 1, 2], padding=1))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_texts(check: Check, dropout: float, tmp_path: Path) -> None:
    folder = str(write_tiny_llama(tmp_path / "llama"))
    adapter = replora.RepLoRAConfig(rank=2, hidden=4, dropout=dropout)
    check(tmp_path, language_module(folder, adapter=adapter), TinyTexts(folder, count=12))


def test_images_with_texts(check: Check, vl_home: Path, tmp_path: Path) -> None:  # noqa: F811
    data = ImageTextDataModule(
        tokenizer=str(vl_home / "bart"),
        root=vl_home / "data",
        tasks=["vqa"],
        feature_size=6,
        num_workers=0,
        batch_size=2,
    )
    model = vl_module(vl_home)
    del model.__dict__["_trainer"]
    check(tmp_path, model.train(), data)
