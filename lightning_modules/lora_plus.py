"""LoRA+: AdamW with a higher rate for B.

Hayou, Ghosh and Yu 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv 2402.12354, which recommends a
ratio of 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from replora.errors import RepLoRAError


class LoRAPlus(torch.optim.AdamW):
    """AdamW whose rate for the matrices that `raise_rate` is given is `ratio` times that of all other parameters.

    A module of this package gives it the B of LoRA, or the last matrices of the MLPs that make B.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate of A and the head (> 0).
        ratio: Rate of B as a multiple of it (> 0).
        betas: Coefficients of the running means of the gradient and its square.
        eps: Added to the denominator.
        weight_decay: Weight decay (>= 0).

    Raises:
        RepLoRAError: `ratio` is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        ratio: float = 16.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        if not 0 < ratio < math.inf:
            raise RepLoRAError(f"ratio: {ratio} is out of range. It must be a number above 0, such as 16.")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.ratio = ratio

    def raise_rate(self, matrices: Iterable[Tensor]) -> None:
        """Move these parameters to groups of their own with the higher rate, before the first step.

        Raises:
            RepLoRAError: None of them is among the parameters.
        """
        wanted = {id(matrix) for matrix in matrices}
        raised = []
        for group in self.param_groups:
            found = [parameter for parameter in group["params"] if id(parameter) in wanted]
            if found:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in wanted]
                raised.append({**group, "params": found, "lr": self.ratio * group["lr"]})
        if not raised:
            raise RepLoRAError(
                "LoRAPlus raises the rate of B, but the adapter has no B that trains: it needs a RepLoRAConfig. Take "
                "torch.optim.AdamW for other methods."
            )
        self.param_groups = [group for group in self.param_groups if group["params"]]
        for group in raised:
            self.add_param_group(group)
