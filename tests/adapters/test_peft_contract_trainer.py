"""The Trainer of transformers groups parameters for weight decay as `replora.parameter_groups` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

import replora
from tests.adapters.test_contract import METHODS, adapted, disturb


class Texts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = torch.arange(2, 8) + i
        return {"input_ids": ids, "labels": ids}


def trainer_of(model: nn.Module | None, folder: Path, cls: Any = Trainer, **options: Any) -> Trainer:
    of_arguments = Seq2SeqTrainingArguments if cls is Seq2SeqTrainer else TrainingArguments
    choices = {name: options.pop(name) for name in ("optimizers", "model_init") if name in options}
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.5,
        "max_steps": 3,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = of_arguments(str(folder / "run"), **defaults | options)
    return cls(model, arguments, train_dataset=Texts(), **choices)


def by_decay(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[float, set[str]]:
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["weight_decay"], set()).update(names[id(p)] for p in group["params"])
    return {decay: group for decay, group in found.items() if group}


@pytest.mark.parametrize("method", [method for method in METHODS if method != "bitfit"])
@pytest.mark.parametrize(("model_name", "cls"), [("hf_llama", Trainer), ("hf_bart", Seq2SeqTrainer)])
def test_the_groups_are_those_of_parameter_groups(model_name: str, cls: Any, method: str, tmp_path: Path) -> None:
    model, _ = adapted(model_name, method)
    trainer = replora.use_parameter_groups(trainer_of(model, tmp_path, cls))
    trainer.train()
    want = by_decay(torch.optim.AdamW(replora.parameter_groups(model), weight_decay=0.5), model)
    assert by_decay(trainer.optimizer.optimizer, model) == want


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
@pytest.mark.parametrize("own", [False, True])
def test_weight_decay_leaves_diagonals_alone(own: bool, optim: str, tmp_path: Path) -> None:
    """With no gradient but the decay's: the second diagonal of a block that a loss of 0 reaches."""

    class NoLoss(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Tensor:
            return 0 * model(**inputs).logits.sum()

    model, _ = adapted("hf_llama", "replora")
    disturb(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trainer_of(model, tmp_path, NoLoss, optim=optim)
    (replora.use_parameter_groups(trainer) if own else trainer).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    vectors = {name for name in before if name.endswith((".diagonal", ".c"))}
    assert vectors
    assert bool(vectors & moved) is not own
    assert any(".mlp_A.U" in name for name in moved)


def test_a_model_that_the_trainer_makes_again_keeps_the_groups(tmp_path: Path) -> None:
    made = []

    def init() -> nn.Module:
        made.append(adapted("hf_llama", "replora")[0])
        return made[-1]

    trainer = replora.use_parameter_groups(trainer_of(None, tmp_path, model_init=init))
    trainer.train()
    model = trainer.model
    assert model is made[-1] is not made[0]
    assert by_decay(trainer.optimizer.optimizer, model) == by_decay(
        torch.optim.AdamW(replora.parameter_groups(model), weight_decay=0.5), model
    )


def test_what_has_no_adapter_or_its_own_optimizer_is_refused(tmp_path: Path) -> None:
    model, _ = adapted("hf_llama", "replora")
    optimizer = torch.optim.AdamW(replora.parameter_groups(model))
    with pytest.raises(replora.RepLoRAError, match=r"has an optimizer already.*replora\.parameter_groups"):
        replora.use_parameter_groups(trainer_of(model, tmp_path, optimizers=(optimizer, None)))
    with pytest.raises(replora.RepLoRAError, match="carries no adapter"):
        replora.use_parameter_groups(trainer_of(replora.remove(model), tmp_path))
