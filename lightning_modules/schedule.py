"""Learning-rate schedules: linear warm-up, then half a cosine (`WarmupCosine`) or a straight line (`WarmupLinear`).

The cosine, with b the optimizer's learning rate, w the warm-up rate, m the final rate, W the length of the warm-up and
T that of the run:

    per step,  t = optimizer steps:        t < W: w + t (b - w) / W    else: m + (b - m) (1 + cos(pi (t-W) / (T-W))) / 2
    per epoch, t = max(epoch - 1, 0):      t < W: w + t (b - w) / W    else: m + (b - m) (1 + cos(pi t / T)) / 2

The second is the schedule of the public VTAB-1K code (NOAH, FacT, Convpass, RepAdapter): timm's `CosineLRScheduler`
with its default `warmup_prefix=False`, stepped after each epoch with the index of that epoch. So epochs 0 and 1 both
run at the warm-up rate, and the cosine has already advanced by W / T when the warm-up ends. Two other rows have rules
of their own per epoch:

    bolts, t = max(epoch - 1, 0):   t < W: w + t (b - w) / (W-1)    else: m + (b - m) (1 + cos(pi (t-W) / (T-W))) / 2
    vpt,   t = epoch:               t < W: w + t (b - w) / W        else: m + (b - m) (1 + cos(pi (t-W) / (T-W))) / 2

`bolts` is Adapter+'s: lightning-bolts' `LinearWarmupCosineAnnealingLR`, stepped after each epoch with its index. `vpt`
is VPT's `WarmupCosineSchedule`; its w and m are 0, so that its first epoch trains nothing.

The line, per step t, is that of transformers' `get_linear_schedule_with_warmup`, which LLM-Adapters and DoRA use:

    t < W: t b / W    else: b (T-t) / (T-W)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from replora.errors import RepLoRAError


class ScheduleLR(LRScheduler):
    """Sets the learning rate of each parameter group to a function of the number of `step()` calls.

    `LambdaLR` multiplies each peak by a factor, which rounds off the absolute rates of the schedules here, and restores
    the peaks of a checkpoint. This one saves its progress alone, so that a resumed run may have another length or peak.

    Args:
        optimizer: Optimizer; the `lr` of its groups are the peaks.
        rate: Function of the number of `step()` calls and the peak that returns the learning rate.
    """

    def __init__(self, optimizer: Optimizer, rate: Callable[[int, float], float]) -> None:
        self.rate = rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [self.rate(self.last_epoch, float(peak)) for peak in self.base_lrs]

    def state_dict(self) -> dict[str, int]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()
        # The optimizer's state has the rate of the schedule before; this one counts from the next step on.
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine. The peak is the `lr` of the optimizer.

    Args:
        warmup_epochs: Length of the linear warm-up in epochs (>= 0), clipped to the run with a warning.
        warmup_lr: Learning rate at the first step (>= 0).
        min_lr: Learning rate at the end of the run, from 0 to the `lr` of the optimizer.
        per: When the rate changes: `step` for every optimizer step, `epoch` for once per epoch, exactly as in the
            public VTAB-1K code.
        lr_base_size: Examples per optimizer step that the optimizer's `lr` stands for: the peak is `lr` x total batch /
            `lr_base_size`, where the total batch is that of all devices, nodes and accumulated batches. Default: the
            peak is `lr`, whatever the batch.
        rule: Whose rule `per: epoch` follows: `timm` (the default), `bolts` or `vpt`.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    warmup_epochs: float = 10
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    per: Literal["step", "epoch"] = "step"
    lr_base_size: int | None = None
    rule: Literal["timm", "bolts", "vpt"] | None = None  # None in the files of runs before there was a choice

    def __post_init__(self) -> None:
        _check_base_size(self.lr_base_size)
        for option in ("warmup_epochs", "warmup_lr", "min_lr"):
            value = getattr(self, option)
            if value < 0:
                raise RepLoRAError(f"schedule.{option}: {value!r} is negative. It must be a number of at least 0.")
        if self.per not in ("step", "epoch"):
            raise RepLoRAError(f"schedule.per: {self.per!r} is not known. It must be 'step' or 'epoch'.")
        if self.rule not in (None, "timm", "bolts", "vpt"):
            raise RepLoRAError(f"schedule.rule: {self.rule!r} is not known. It must be 'timm', 'bolts' or 'vpt'.")
        if self.rule is not None and self.per == "step":
            raise RepLoRAError(f"schedule.rule: {self.rule!r} is a rule per epoch. Set --model.schedule.per epoch.")

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int, total_steps: int) -> ScheduleLR:
        """Create the scheduler of a run of `total_steps` optimizer steps, to be stepped once per step or epoch (`per`).

        Raises:
            RepLoRAError: The learning rate of a parameter group is below `min_lr`.
        """
        for group in optimizer.param_groups:
            if group["lr"] < self.min_lr:
                raise RepLoRAError(
                    f"The peak learning rate {group['lr']:g} is below schedule.min_lr {self.min_lr:g}: the rate would "
                    "rise to the end. Lower --model.schedule.min_lr or raise --model.optimizer.lr."
                )
        if self.per == "step":
            warmup, total = round(self.warmup_epochs * steps_per_epoch), total_steps
        else:
            warmup, total = round(self.warmup_epochs), math.ceil(total_steps / steps_per_epoch)
        if warmup > total:
            rank_zero_warn(
                f"schedule.warmup_epochs: {self.warmup_epochs:g} epochs are longer than the run of "
                f"{total_steps / steps_per_epoch:g}; the warm-up is clipped to the run, so the rate never decays"
                + (f": it stays at {self._highest(total, optimizer):.3g} at most" if self.per == "epoch" else "")
                + ". Shorten it: --model.schedule.warmup_epochs"
            )
            warmup = total
        return ScheduleLR(optimizer, partial(self._rate, warmup, total))

    def _highest(self, total: int, optimizer: Optimizer) -> float:
        """The highest rate of a run of `total` epochs that are all warm-up."""
        peak = max(float(group["lr"]) for group in optimizer.param_groups)
        return max(self._rate(total, total, epoch, peak) for epoch in range(total))

    def _rate(self, warmup: int, total: int, count: int, peak: float) -> float:
        t = count if self.per == "step" or self.rule == "vpt" else max(count - 1, 0)
        if t < warmup:
            return self.warmup_lr + t * ((peak - self.warmup_lr) / max(warmup - (self.rule == "bolts"), 1))
        skipped = 0 if self.per == "epoch" and self.rule in (None, "timm") else warmup
        length = max(total - skipped, 1)
        elapsed = min(t - skipped, length)
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * elapsed / length))


@dataclass(frozen=True)
class WarmupLinear:
    """Linear warm-up, then a linear decay to 0. The peak is the `lr` of the optimizer.

    Args:
        warmup_steps: Length of the warm-up in optimizer steps (>= 0), clipped to the run with a warning.
        warmup_fraction: Length of the warm-up as a fraction of the run, in [0, 1], instead of in steps.
        lr_base_size: Examples per optimizer step that the optimizer's `lr` stands for: the peak is `lr` x total batch /
            `lr_base_size`, where the total batch is that of all devices, nodes and accumulated batches. Default: the
            peak is `lr`, whatever the batch.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    warmup_steps: int = 100
    warmup_fraction: float | None = None
    lr_base_size: int | None = None

    def __post_init__(self) -> None:
        _check_base_size(self.lr_base_size)
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction <= 1:
            raise RepLoRAError(
                f"schedule.warmup_fraction: {self.warmup_fraction} is out of range. It must be a number in [0, 1]."
            )
        if self.warmup_steps < 0:
            raise RepLoRAError(
                f"schedule.warmup_steps: {self.warmup_steps} is negative. It must be a number of at least 0."
            )

    @property
    def per(self) -> Literal["step"]:
        """When the rate changes."""
        return "step"

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int, total_steps: int) -> ScheduleLR:  # noqa: ARG002
        """Create the scheduler of a run of `total_steps` optimizer steps, to be stepped once per step."""
        if self.warmup_fraction is not None:
            return ScheduleLR(optimizer, partial(_line, int(self.warmup_fraction * total_steps), total_steps))
        warmup = min(self.warmup_steps, total_steps)
        if warmup < self.warmup_steps:
            rank_zero_warn(
                f"schedule.warmup_steps: {self.warmup_steps} steps are longer than the run of {total_steps}; the "
                "warm-up is clipped to the run, so the rate never decays. Shorten it: --model.schedule.warmup_steps"
            )
        return ScheduleLR(optimizer, partial(_line, warmup, total_steps))


def scale_rates(optimizer: Optimizer, base_size: int | None, total_batch: int) -> None:
    """Multiply the rate of each parameter group by `total_batch / base_size` and log it; None changes nothing."""
    if base_size is None:
        return
    for group in optimizer.param_groups:
        base, group["lr"] = group["lr"], group["lr"] * total_batch / base_size
    rank_zero_info(f"learning rate: {base:g} x total batch {total_batch:,} / {base_size:,} = {group['lr']:g}")


def _check_base_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise RepLoRAError(f"schedule.lr_base_size: {size} is out of range. It must be at least 1, usually 256.")


def _line(warmup: int, total: int, count: int, peak: float) -> float:
    if count < warmup:
        return peak * count / warmup
    return peak * max(0.0, (total - count) / max(total - warmup, 1))
