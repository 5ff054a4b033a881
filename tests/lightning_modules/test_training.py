from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BatchSizeFinder
from torch.nn import functional as F

import replora
from lightning_modules import ImageClassification, WarmupCosine
from lightning_modules.base import NonFiniteLossError
from replora.errors import RepLoRAError
from tests.lightning_modules.helpers import CLASSES, StopBefore, StopError, TinyImages, module, trainer

LORA = replora.RepLoRAConfig(rank=2, factors="none", blocks=[0, 5])


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, *_args) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_only_adapter_and_head_change(tmp_path):
    model = module(adapter=LORA)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(tmp_path).fit(model, TinyImages())
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    expected = {f"model.{name}" for name in replora.adapter_state(model.model)}
    assert changed == expected
    assert {"model.head.weight", "model.head.bias"} < changed
    assert len(changed) > 2


def test_optimizer_holds_what_trains_and_spares_vectors_from_decay(tmp_path):
    model = module()
    fit = trainer(tmp_path, fast_dev_run=True)
    fit.fit(model, TinyImages())
    groups = fit.optimizers[0].param_groups
    held = {id(p) for group in groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert {group["weight_decay"] for group in groups} == {1e-4, 0.0}


def test_any_optimizer(tmp_path):
    model = module(adapter=LORA, optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    fit = trainer(tmp_path, fast_dev_run=True)
    fit.fit(model, TinyImages())
    assert isinstance(fit.optimizers[0], torch.optim.SGD)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_schedule_is_stepped_as_it_says(tmp_path, per):
    schedule, rates = WarmupCosine(warmup_epochs=2, per=per), Rates()
    trainer(tmp_path, 4, (rates,), limit_val_batches=0).fit(module(adapter=LORA, schedule=schedule), TinyImages())
    course = schedule.scheduler(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3), 2, 8)
    counts = range(8) if per == "step" else [epoch for epoch in range(4) for _ in range(2)]
    assert rates.seen == pytest.approx([course.rate(count, 1e-3) for count in counts], rel=1e-12)


def test_accumulated_gradients_count_as_one_step(tmp_path):
    rates = Rates()
    fit = trainer(tmp_path, 4, (rates,), limit_val_batches=0, accumulate_grad_batches=2)
    fit.fit(module(adapter=LORA), TinyImages())
    assert rates.seen[::2] == pytest.approx(rates.seen[1::2])
    assert len(set(rates.seen)) == 4


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_the_schedule_is_that_of_the_batch_size_found(tmp_path, per):
    """Lightning's tuner tries 2 and 4 images at once, after the schedule was made for 8."""
    found, wanted = Rates(), Rates()
    for size, callbacks in ((8, (BatchSizeFinder(max_trials=2, steps_per_trial=1), found)), (4, (wanted,))):
        model = module(adapter=LORA, schedule=WarmupCosine(warmup_epochs=1, per=per))
        trainer(tmp_path, 4, callbacks, limit_val_batches=0).fit(model, TinyImages(train=16, batch_size=size))
    assert found.seen == wanted.seen
    assert len(set(wanted.seen)) > 2


def test_endless_run_is_refused(tmp_path):
    with pytest.raises(RepLoRAError, match=r"set --trainer\.max_epochs"):
        trainer(tmp_path, -1).fit(module(adapter=LORA), TinyImages())


def test_a_run_of_so_many_steps_is_the_run_of_so_many_epochs(tmp_path):
    """The schedule knows its warm-up in epochs although no epochs are given: two steps each here."""
    by_epochs, by_steps = Rates(), Rates()
    trainer(tmp_path, 3, (by_epochs,), limit_val_batches=0).fit(module(adapter=LORA), TinyImages())
    trainer(tmp_path, -1, (by_steps,), limit_val_batches=0, max_steps=6).fit(module(adapter=LORA), TinyImages())
    assert by_steps.seen == by_epochs.seen


def test_metrics_and_losses_are_means_over_images_not_batches(tmp_path):
    model, data = module(adapter=LORA), TinyImages(evaluation=7, batch_size=4, padding=3)
    measured = trainer(tmp_path).test(model, data, verbose=False)[0]
    samples = [sample for sample in data.loader("test").dataset if sample["index"] >= 0]
    assert len(samples) == 7
    with torch.no_grad():
        logits = model.eval()(torch.stack([sample["image"] for sample in samples]))
    label = torch.tensor([sample["label"] for sample in samples])
    right = logits.argmax(-1) == label
    by_class = [right[label == c].float().mean() for c in range(CLASSES)]
    assert measured["test/loss"] == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-5)
    assert measured["test/accuracy"] == pytest.approx(right.float().mean().item())
    assert measured["test/mean_class_accuracy"] == pytest.approx(sum(by_class).item() / CLASSES)


def test_a_batch_of_nothing_but_padding_weighs_nothing(tmp_path):
    model = module(adapter=LORA)
    plain, padded = TinyImages(evaluation=4, batch_size=4), TinyImages(evaluation=4, batch_size=4, padding=4)
    measured = [trainer(tmp_path).test(model, data, verbose=False)[0] for data in (plain, padded)]
    assert measured[0] == measured[1]


def test_label_smoothing_is_for_training_alone(tmp_path):
    smooth, plain = module(adapter=LORA, label_smoothing=0.5), module(adapter=LORA)
    batch = next(iter(TinyImages().loader("val")))
    losses = {}
    for name, model in (("smooth", smooth), ("plain", plain)):
        fit = trainer(tmp_path, fast_dev_run=True)
        fit.fit(model, TinyImages())
        losses[name] = fit.callback_metrics["val/loss"], fit.callback_metrics["train/loss"]
    with torch.no_grad():
        logits = smooth.eval()(batch["image"])
    assert losses["smooth"][0].item() == pytest.approx(F.cross_entropy(logits, batch["label"]).item(), rel=1e-4)
    assert losses["smooth"][1] != losses["plain"][1]


def test_predictions_are_probabilities_by_index():
    model = module(adapter=LORA).eval()
    batch = next(iter(TinyImages().loader("val")))
    with torch.no_grad():
        out = model.predict_step(batch, 0)
    assert out["index"].tolist() == batch["index"].tolist()
    assert out["probabilities"].sum(-1).tolist() == pytest.approx([1.0] * 4)


def test_wrong_image_size_fails_before_the_first_batch(tmp_path):
    class Large(TinyImages):
        image_size = 64

        def train_dataloader(self):
            raise AssertionError("too late")

    message = r"vit_nano takes images of 32 x 32 pixels, but the data gives 64 x 64. Set --data.image_size 32"
    with pytest.raises(RepLoRAError, match=message):
        trainer(tmp_path).fit(module(adapter=LORA), Large())
    with pytest.raises(RepLoRAError, match=message):
        module(adapter=LORA)(torch.zeros(1, 3, 64, 64))


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    model = module(adapter=LORA)
    with torch.no_grad():
        model.model.head.bias.fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match=r"The loss is nan in epoch 0, batch 0 \(step 0\)"):
        trainer(tmp_path).fit(model, TinyImages())


def test_options_are_checked():
    with pytest.raises(RepLoRAError, match=r"label_smoothing: 1\.0 is out of range"):
        module(label_smoothing=1.0)


@pytest.mark.parametrize(("stop", "per"), [(1, "step"), (2, "epoch")])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, stop, per):
    options = {"drop_path_rate": 0.3, "label_smoothing": 0.1, "schedule": WarmupCosine(warmup_epochs=1, per=per)}
    whole = trainer(tmp_path / "whole", 3)
    whole.fit(module(**options), TinyImages())

    with pytest.raises(StopError):
        trainer(tmp_path / "parts", 3, (StopBefore(stop),)).fit(module(**options), TinyImages())
    torch.manual_seed(12345)  # a resumed process has drawn other numbers before
    resumed = trainer(tmp_path / "parts", 3)
    model = module(**options)
    torch.randn(7)
    resumed.fit(model, TinyImages(), ckpt_path=tmp_path / "parts" / "last.ckpt")

    files = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "parts")]
    assert files[0]["epoch"] == files[1]["epoch"] == 2
    assert files[0]["global_step"] == files[1]["global_step"]
    for key in files[0]["state_dict"]:
        assert torch.equal(files[0]["state_dict"][key], files[1]["state_dict"][key]), key
    for a, b in zip(*(file["optimizer_states"][0]["state"].values() for file in files), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    assert files[0]["lr_schedulers"] == files[1]["lr_schedulers"]
    for name, value in whole.callback_metrics.items():
        assert torch.equal(value, resumed.callback_metrics[name]), name


def test_randomness_depends_on_seed_epoch_and_batch(tmp_path):
    class Draws(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_before_zero_grad(self, *_args) -> None:
            self.seen.append(torch.rand(1).item())

    runs = []
    for seed in (0, 0, 1):
        draws = Draws()
        trainer(tmp_path, 2, (draws,), limit_val_batches=0).fit(module(seed, adapter=LORA), TinyImages())
        runs.append(draws.seen)
    assert runs[0] == runs[1]
    assert len({*runs[0], *runs[2]}) == 8


def test_python_api_without_a_datamodule(tmp_path):
    data = TinyImages()
    model = module(adapter=LORA)
    trainer(tmp_path).fit(model, data.loader("train"), data.loader("val"))
    assert isinstance(model, ImageClassification)
