"""The learning rate over a run: linear warm-up, then half a cosine (`WarmupCosine`) or a line (`WarmupLinear`).

The cosine, with b the optimiser's learning rate, w the warm-up rate, m the final rate, and lengths W of the warm-up, T
of the run:

    per step,  t = optimiser steps:        t < W: w + t (b - w) / W    else: m + (b - m) (1 + cos(pi (t-W) / (T-W))) / 2
    per epoch, t = max(epoch - 1, 0):      t < W: w + t (b - w) / W    else: m + (b - m) (1 + cos(pi t / T)) / 2

The second is the course of the public VTAB-1K code (NOAH, FacT, Convpass, RepAdapter): timm's `CosineLRScheduler` with
its default `warmup_prefix=False`, stepped after each epoch with that epoch's index. So epochs 0 and 1 both run at the
warm-up rate, and the cosine is already W / T on its way when the warm-up ends.

The line, per step t, is that of transformers' `get_linear_schedule_with_warmup`, which LLM-Adapters and DoRA use:

    t < W: t b / W    else: b (T-t) / (T-W)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from replora.errors import RepLoRAError


@dataclass(frozen=True)
class WarmupCosine:
    """Options of the learning rate's course. The peak is the optimiser's own `lr`.

    Args:
        warmup_epochs: Length of the linear warm-up in epochs, at least 0. Longer than the run: clipped, with a warning.
        warmup_lr: Learning rate at the first step, at least 0.
        min_lr: Learning rate at the end of the run, at least 0 and at most the optimiser's `lr`.
        per: `step` changes the rate at every optimiser step, `epoch` once an epoch, exactly as the public VTAB-1K code.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    warmup_epochs: float = 10
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    per: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        for option in ("warmup_epochs", "warmup_lr", "min_lr"):
            value = getattr(self, option)
            if value < 0:
                raise RepLoRAError(f"schedule.{option}: {value!r} is negative. It must be a number of at least 0.")
        if self.per not in ("step", "epoch"):
            raise RepLoRAError(f"schedule.per: {self.per!r} is not known. It must be 'step' or 'epoch'.")

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int, total_steps: int) -> WarmupCosineLR:
        """The scheduler for a run of `total_steps` optimiser steps, to be stepped once a step or an epoch (`per`)."""
        if self.per == "step":
            warmup, total = round(self.warmup_epochs * steps_per_epoch), total_steps
        else:
            warmup, total = round(self.warmup_epochs), math.ceil(total_steps / steps_per_epoch)
        if warmup > total:
            rank_zero_warn(
                f"schedule.warmup_epochs: {self.warmup_epochs:g} epochs are longer than the run of "
                f"{total_steps / steps_per_epoch:g}; the warm-up is clipped to the run, which never gets past its peak."
            )
            warmup = total
        return WarmupCosineLR(optimizer, self, warmup, total)


class CourseLR(LRScheduler, ABC):
    """The learning rate of each parameter group, as a function of the number of calls of `step()` alone."""

    def get_lr(self) -> list[float | Tensor]:
        return [self.rate(self.last_epoch, float(peak)) for peak in self.base_lrs]

    @abstractmethod
    def rate(self, count: int, peak: float) -> float:
        """The learning rate after `count` calls of `step()`, for a group whose peak is `peak`."""

    def state_dict(self) -> dict[str, int]:
        """How far the run is. The course comes from the options, so that a longer run can resume a shorter one."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self.get_lr()


class WarmupCosineLR(CourseLR):
    """Warm-up and cosine.

    Args:
        optimizer: Its groups' `lr` are the peaks.
        options: The course's end points and kind.
        warmup: Length of the warm-up W, in calls of `step()`.
        total: Length of the run T, in calls of `step()`.

    Raises:
        RepLoRAError: A group's learning rate is below `options.min_lr`.
    """

    def __init__(self, optimizer: Optimizer, options: WarmupCosine, warmup: int, total: int) -> None:
        self.options = options
        self.warmup = warmup
        self.total = total
        for group in optimizer.param_groups:
            if group["lr"] < options.min_lr:
                raise RepLoRAError(
                    f"The optimiser's lr {group['lr']:g} is below schedule.min_lr {options.min_lr:g}: the rate would "
                    "rise to the end. Lower --model.schedule.min_lr or raise --model.optimizer.lr."
                )
        super().__init__(optimizer)

    def rate(self, count: int, peak: float) -> float:
        o = self.options
        t = count if o.per == "step" else max(count - 1, 0)
        if t < self.warmup:
            return o.warmup_lr + t * ((peak - o.warmup_lr) / self.warmup)
        skipped = self.warmup if o.per == "step" else 0
        length = max(self.total - skipped, 1)
        elapsed = min(t - skipped, length)
        return o.min_lr + 0.5 * (peak - o.min_lr) * (1 + math.cos(math.pi * elapsed / length))


@dataclass(frozen=True)
class WarmupLinear:
    """Options of a learning rate that rises and falls in straight lines. The peak is the optimiser's own `lr`.

    Args:
        warmup_steps: Length of the warm-up in optimiser steps, at least 0. Longer than the run: clipped, with a
            warning.
        warmup_fraction: Its length as a part of the run, in [0, 1], instead of in steps.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    warmup_steps: int = 100
    warmup_fraction: float | None = None

    def __post_init__(self) -> None:
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

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int, total_steps: int) -> WarmupLinearLR:  # noqa: ARG002
        """The scheduler for a run of `total_steps` optimiser steps, to be stepped once a step."""
        if self.warmup_fraction is not None:
            return WarmupLinearLR(optimizer, int(self.warmup_fraction * total_steps), total_steps)
        warmup = min(self.warmup_steps, total_steps)
        if warmup < self.warmup_steps:
            rank_zero_warn(
                f"schedule.warmup_steps: {self.warmup_steps} steps are longer than the run of {total_steps}; the "
                "warm-up is clipped to the run, which never gets past its peak. Shorter: --model.schedule.warmup_steps"
            )
        return WarmupLinearLR(optimizer, warmup, total_steps)


class WarmupLinearLR(CourseLR):
    """Warm-up and line.

    Args:
        optimizer: Its groups' `lr` are the peaks.
        warmup: Length of the warm-up W in steps.
        total: Length of the run T in steps.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: int) -> None:
        self.warmup = warmup
        self.total = total
        super().__init__(optimizer)

    def rate(self, count: int, peak: float) -> float:
        if count < self.warmup:
            return peak * count / self.warmup
        return peak * max(0.0, (self.total - count) / max(self.total - self.warmup, 1))
