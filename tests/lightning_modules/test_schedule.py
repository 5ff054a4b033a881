from __future__ import annotations

import itertools

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from lightning_modules.schedule import WarmupCosine, WarmupLinear, scale_rates
from replora.errors import RepLoRAError


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (1e-3,)])


def rates(schedule: WarmupCosine, epochs: int, steps_per_epoch: int) -> list[float]:
    """The learning rate at the start of every step (or epoch) of a run, as the Trainer steps the scheduler."""
    opt = optimizer()
    scheduler = schedule.scheduler(opt, steps_per_epoch, epochs * steps_per_epoch)
    seen = []
    for _ in range(epochs * (steps_per_epoch if schedule.per == "step" else 1)):
        seen.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 1e-6), (1, 1e-6), (2, 1.009e-4), (10, 9.001e-4), (11, 9.758e-4), (50, 5.205e-4), (99, 1.098e-5)],
)
def test_archive_recipe(epoch, rate):
    assert rates(WarmupCosine(per="epoch"), 100, 15)[epoch] == pytest.approx(rate, rel=1e-3)


def test_archive_recipe_is_timms_scheduler_stepped_after_each_epoch():
    opt = optimizer(1e-3, 5e-3)
    timms = CosineLRScheduler(opt, t_initial=100, lr_min=1e-5, warmup_t=10, warmup_lr_init=1e-6)
    ours_opt = optimizer(1e-3, 5e-3)
    ours = WarmupCosine(per="epoch").scheduler(ours_opt, 15, 1500)
    for epoch in range(100):
        assert [g["lr"] for g in ours_opt.param_groups] == [g["lr"] for g in opt.param_groups], epoch
        timms.step(epoch)
        ours_opt.step()
        ours.step()


def test_per_step_warms_up_and_falls_without_a_jump():
    seen = rates(WarmupCosine(warmup_epochs=2, warmup_lr=1e-6, min_lr=1e-5), epochs=10, steps_per_epoch=5)
    assert seen[0] == pytest.approx(1e-6)
    assert seen[10] == max(seen) == pytest.approx(1e-3)
    assert seen[5] == pytest.approx((1e-6 + 1e-3) / 2)
    assert seen[30] == pytest.approx((1e-5 + 1e-3) / 2)
    assert seen[:11] == sorted(seen[:11])
    assert seen[10:] == sorted(seen[10:], reverse=True)
    assert 1e-5 < seen[-1] < 2e-5
    assert max(abs(b - a) for a, b in itertools.pairwise(seen)) < 1.01e-4


def test_without_warmup_the_peak_comes_first():
    assert rates(WarmupCosine(warmup_epochs=0), 2, 3)[0] == pytest.approx(1e-3)


def test_after_the_end_the_rate_stays():
    opt = optimizer()
    scheduler = WarmupCosine(warmup_epochs=1).scheduler(opt, 2, 4)
    for _ in range(9):
        opt.step()
        scheduler.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(1e-5)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_warmup_longer_than_the_run_is_clipped(per):
    with pytest.warns(UserWarning, match=r"warmup_epochs: 10 epochs are longer than the run of 3"):
        seen = rates(WarmupCosine(per=per), 3, 4)
    assert seen == sorted(seen)
    assert seen[0] == pytest.approx(1e-6)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_state_restores_the_schedule(per):
    schedule = WarmupCosine(warmup_epochs=2, per=per)
    whole = rates(schedule, 8, 3)
    opt = optimizer()
    first = schedule.scheduler(opt, 3, 24)
    for _ in range(5):
        opt.step()
        first.step()
    resumed_opt = optimizer()
    resumed = schedule.scheduler(resumed_opt, 3, 24)
    resumed_opt.load_state_dict(opt.state_dict())
    resumed.load_state_dict(first.state_dict())
    seen = []
    while len(seen) < len(whole) - 5:
        seen.append(resumed_opt.param_groups[0]["lr"])
        resumed_opt.step()
        resumed.step()
    assert seen == whole[5:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": -1}, r"schedule\.warmup_epochs: -1 is negative"),
        ({"min_lr": -1e-5}, r"schedule\.min_lr: -1e-05 is negative"),
        ({"per": "batch"}, r"schedule\.per: 'batch' is not known"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(RepLoRAError, match=message):
        WarmupCosine(**options)


def test_a_rate_below_the_final_one_is_refused():
    with pytest.raises(RepLoRAError, match=r"rate 1e-06 is below schedule.min_lr 1e-05"):
        WarmupCosine().scheduler(optimizer(1e-6), 1, 10)


def test_linear_schedule_is_that_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    theirs, ours = optimizer(3e-4), optimizer(3e-4)
    expected = get_linear_schedule_with_warmup(theirs, num_warmup_steps=5, num_training_steps=20)
    found = WarmupLinear(warmup_steps=5).scheduler(ours, 4, 20)
    for _ in range(22):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for step in (theirs.step, ours.step, expected.step, found.step):
            step()


def test_linear_warmup_longer_than_the_run_is_clipped():
    opt = optimizer(1e-3)
    with pytest.warns(UserWarning, match=r"100 steps are longer than the run of 8"):
        scheduler = WarmupLinear(100).scheduler(opt, 4, 8)
    assert [scheduler.rate(count, 1.0) for count in (0, 4, 8)] == [0, 0.5, 0]
    with pytest.raises(RepLoRAError, match=r"schedule\.warmup_steps: -1 is negative"):
        WarmupLinear(-1)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulated", "peak"),
    [(16, 1, 1, 0.00625), (16, 8, 1, 0.05), (4, 1, 4, 0.00625), (16, 2, 16, 0.2)],
)
def test_a_rate_per_256_examples_follows_the_total_batch(batch_size, world_size, accumulated, peak):
    schedule = WarmupCosine(warmup_epochs=0, warmup_lr=0.0, min_lr=0.0, lr_base_size=256)
    opt = optimizer(0.1, 0.2)
    scale_rates(opt, schedule.lr_base_size, batch_size * world_size * accumulated)
    schedule.scheduler(opt, 1, 10)
    assert [group["initial_lr"] for group in opt.param_groups] == pytest.approx([peak, 2 * peak])
    for kind in (WarmupCosine, WarmupLinear):
        unscaled = optimizer(0.1)
        scale_rates(unscaled, kind().lr_base_size, batch_size)
        assert unscaled.param_groups[0]["lr"] == 0.1
        with pytest.raises(RepLoRAError, match="lr_base_size: 0 is out of range"):
            kind(lr_base_size=0)


@pytest.mark.parametrize(
    ("rule", "warmup_lr", "min_lr", "expected"),
    [
        # Values of the closed forms in Adapter+'s and VPT's own schedulers, at a peak of 1e-3 over 100 epochs.
        (
            "bolts",
            1e-5,
            1e-6,
            {0: 1e-5, 1: 1e-5, 2: 1.2e-4, 10: 1e-3, 11: 1e-3, 12: 9.997e-4, 56: 5.005e-4, 99: 2.217e-6},
        ),
        ("vpt", 0.0, 0.0, {0: 0.0, 1: 1e-4, 10: 1e-3, 55: 5e-4, 99: 3.046e-7}),
    ],
)
def test_rules_of_other_rows(rule, warmup_lr, min_lr, expected):
    seen = rates(WarmupCosine(warmup_lr=warmup_lr, min_lr=min_lr, per="epoch", rule=rule), 100, 15)
    assert {epoch: seen[epoch] for epoch in expected} == pytest.approx(expected, rel=1e-3)


def test_a_rule_needs_a_schedule_per_epoch():
    with pytest.raises(RepLoRAError, match=r"'vpt' is a rule per epoch.*per epoch"):
        WarmupCosine(rule="vpt")
    with pytest.raises(RepLoRAError, match="'cosine' is not known"):
        WarmupCosine(per="epoch", rule="cosine")  # type: ignore[arg-type]


def test_the_warning_of_a_clipped_warmup_tells_the_rate_that_is_reached():
    with pytest.warns(UserWarning, match=r"10 epochs are longer than the run of 2; .*stays at 1e-06 at most"):
        rates(WarmupCosine(per="epoch"), 2, 15)
