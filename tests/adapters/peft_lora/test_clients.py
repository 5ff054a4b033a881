"""Programs that train a reparameterized model and know nothing of it: transformers' Trainer, TRL, accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import replora
from tests.adapters.peft_lora.test_reparameterize import build, output, train, wrapped

ROWS = [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(16)]
FILE = "replora_generators.safetensors"


def trainer_of(model: nn.Module, folder: Path, **options: Any) -> Trainer:
    named = {name: options.pop(name) for name in ("callbacks", "optimizers") if name in options}
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_steps": 6,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **defaults | options)
    return Trainer(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], **named)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    one, two = state(model), state(other)
    assert one.keys() == two.keys()
    differ = [name for name, tensor in one.items() if not torch.equal(tensor, two[name])]
    assert not differ


def with_dora() -> nn.Module:
    return wrapped(use_dora=True, lora_dropout=0.1)


def with_embedding() -> nn.Module:
    return wrapped(("embed_tokens", "q_proj", "gate_proj"), modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("make", "options"), [(wrapped, {"hidden": 2}), (with_dora, {"activation": "relu"}), (with_embedding, {})]
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(make, options, tmp_path: Path) -> None:
    whole = replora.reparameterize(make(), **options)
    trainer_of(whole, tmp_path, save_strategy="steps", save_steps=3).train()
    resumed = replora.reparameterize(make(), **options)
    torch.manual_seed(5)
    trainer_of(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_equal(resumed, whole)
