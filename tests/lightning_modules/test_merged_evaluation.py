"""Evaluations run merged, training never does, and the frozen weights come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import replora
from lightning_modules import MergedEvaluation
from replora import RepLoRAConfig
from tests.lightning_modules.helpers import StopError, TinyImages, module, trainer

ADAPTER = RepLoRAConfig(rank=2, hidden=8, blocks=[0, 5])


def trained(adapter: replora.AdapterConfig = ADAPTER):
    """A module whose update is not 0."""
    model = module(adapter=adapter)
    with torch.no_grad():
        for parameter in model.model.replora.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def merged(model) -> bool:
    return any(update.merged for update in model.model.replora.updates)


class Watch(Callback):
    """Whether the adapter was merged, at each step of each kind."""

    def __init__(self) -> None:
        self.seen: dict[str, list[bool]] = {"train": [], "val": [], "test": [], "predict": []}

    def on_train_batch_end(self, trainer, pl_module, *_args) -> None:  # noqa: ARG002
        self.seen["train"].append(merged(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, *_args) -> None:  # noqa: ARG002
        self.seen["val"].append(merged(pl_module))

    def on_test_batch_end(self, trainer, pl_module, *_args) -> None:  # noqa: ARG002
        self.seen["test"].append(merged(pl_module))

    def on_predict_batch_end(self, trainer, pl_module, *_args) -> None:  # noqa: ARG002
        self.seen["predict"].append(merged(pl_module))


def frozen(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}


def test_evaluations_are_merged_and_training_is_not(tmp_path) -> None:
    model, data, watch = trained(), TinyImages(), Watch()
    before = frozen(model)
    fit = trainer(tmp_path, 2, (watch,), val_check_interval=1)  # validation inside the epoch as well
    fit.num_sanity_val_steps = 1
    fit.fit(model, data)
    fit.test(model, data, verbose=False)
    fit.predict(model, data.loader("test"))
    assert all(len(seen) > 1 for seen in watch.seen.values())
    assert not any(watch.seen.pop("train"))
    assert all(merged for seen in watch.seen.values() for merged in seen)
    assert not merged(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen(model).items())
    assert sum(isinstance(callback, MergedEvaluation) for callback in fit.callbacks) == 1


def test_metrics_are_those_without_merging(tmp_path, monkeypatch) -> None:
    data = TinyImages(evaluation=40)
    with_merging = trainer(tmp_path).test(trained(), data, verbose=False)[0]
    monkeypatch.setattr(MergedEvaluation, "_merge", lambda *_: None)
    without = trainer(tmp_path).test(trained(), data, verbose=False)[0]
    assert with_merging == pytest.approx(without, rel=1e-4)


def test_training_with_evaluations_between_equals_training_alone(tmp_path) -> None:
    states = []
    for options in ({"limit_val_batches": 0}, {"val_check_interval": 1}):
        model = trained()
        trainer(tmp_path, 2, **options).fit(model, TinyImages())
        states.append(replora.adapter_state(model.model))
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_checkpoint_written_by_a_validation_is_that_of_the_unmerged_model(tmp_path) -> None:
    model = trained()
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", save_on_train_epoch_end=False)
    trainer(tmp_path, 1, (best,)).fit(model, TinyImages())
    content = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    state = replora.adapter_state(model.model)
    assert set(content) == {f"model.{name}" for name in state}
    assert all(torch.equal(content[f"model.{name}"], tensor) for name, tensor in state.items())


class Fail(Callback):
    def on_validation_batch_end(self, *_args) -> None:
        raise StopError


def test_a_failing_evaluation_leaves_the_weights_as_they_were(tmp_path) -> None:
    model = trained()
    before = frozen(model)
    with pytest.raises(StopError):
        trainer(tmp_path, 1, (Fail(),)).validate(model, TinyImages(), verbose=False)
    assert not merged(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen(model).items())
    trainer(tmp_path).fit(model, TinyImages())


def test_an_adapter_that_was_merged_stays_merged(tmp_path) -> None:
    model = trained()
    replora.merge(model.model)
    trainer(tmp_path).validate(model, TinyImages(), verbose=False)
    assert merged(model)


@pytest.mark.parametrize("case", ["sixteen bits", "dora", "averaged"])
def test_unmerged_where_merging_would_not_be_exact(tmp_path, case: str, monkeypatch) -> None:
    model = trained(replora.PeftMethodConfig("dora", rank=2, blocks=[0]) if case == "dora" else ADAPTER)
    if case == "sixteen bits":
        model.model.bfloat16()
    calls = []
    monkeypatch.setattr(replora, "merge", calls.append)
    precision = "bf16-true" if case == "sixteen bits" else "32-true"
    callbacks = (EMAWeightAveraging(),) if case == "averaged" else ()
    trainer(tmp_path, 1, callbacks, precision=precision).validate(model, TinyImages(), verbose=False)
    assert not calls
    trainer(tmp_path).validate(trained(), TinyImages(), verbose=False)
    assert len(calls) == 1
