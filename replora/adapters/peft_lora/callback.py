"""The callback for the Trainer of transformers, and for what derives from it: TRL, sentence-transformers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from replora.adapters.peft_lora.client import is_peft_model
from replora.adapters.peft_lora.file import FILE_NAME, write
from replora.adapters.peft_lora.generators import Reparameterized, host_of
from replora.adapters.wrappers import is_sharded
from replora.errors import RepLoRAError

_log = logging.get_logger("transformers.replora")  # with the level that the user has set for the Trainer's own


_SHORT = (torch.float16, torch.bfloat16)

# Before it a Trainer reads back, where a checkpoint has folders of further adapters, these alone.
_READS_ALL_ADAPTERS = (5, 23)


class RepLoRACallback(TrainerCallback):  # type: ignore[misc]
    """Checks, before the first step of a Trainer, that it trains what `replora.reparameterize` made, and says so.

        trainer = Trainer(model, ..., callbacks=[replora.RepLoRACallback()])

    It refuses an optimizer that was made before `reparameterize`, which would train nothing, and a frozen adapter. It
    warns where weight decay would pull RepLoRA's diagonals to 0. Generators that a trainer has rounded to 16 bits, as
    TRL does on a quantized model, are kept in float32: there a step is too small to change a diagonal of 1. Where a
    checkpoint has no generators beside the adapter, it writes them. It warns where the installed transformers has
    resumed a run without the weights of the checkpoint's adapter.
    """

    def on_init_end(self, *_args: Any, model: Any = None, **_: Any) -> None:
        """Keep generators in float32."""
        for generators in _generators(model).values():
            for bank in generators.factor_banks():
                if any(p.dtype in _SHORT for p in bank.parameters()):
                    bank.float()

    def on_train_begin(
        self, _args: Any, state: Any, _control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Check what trains.

        Raises:
            RepLoRAError: Nothing is reparameterized, no generator trains, or the optimizer has none of them.
        """
        every = _generators(model)
        if not every:
            raise RepLoRAError(
                "RepLoRACallback: the model is not reparameterized. Call replora.reparameterize(model) before the "
                "trainer trains; where the trainer made the adapter itself: replora.reparameterize(trainer.model)."
            )
        trained = {name: one for name, one in every.items() if any(p.requires_grad for p in one.parameters())}
        if not trained:
            raise RepLoRAError(
                f"RepLoRACallback: the adapter {' and '.join(map(repr, every))} is frozen. Load it with "
                "PeftModel.from_pretrained(..., is_trainable=True), or call model.set_adapter(name)."
            )
        shares = optimizer is not None and _has_shares(model, optimizer)  # read in another way
        if state.global_step and "default" in trained and not shares and _resumes_without_default(model):
            warnings.warn(
                f"transformers {transformers.__version__} does not read the adapter 'default' of a checkpoint with "
                f"further adapters. Unless the model was made with that adapter, training goes on after "
                f"{state.global_step} steps from what it had before: install transformers>=5.23.",
                stacklevel=2,
            )
        if short := {p.dtype for one in trained.values() for p in one.parameters() if p.dtype in _SHORT}:
            warnings.warn(
                f"RepLoRA's generators train in {short.pop()}, in which a step is too small to change a diagonal of 1. "
                "Give the callback to the trainer when it is made, or call model.replora.float() before.",
                stacklevel=2,
            )
        if optimizer is not None and not shares:
            parameters = {id(p): name for one in trained.values() for name, p in one.named_parameters()}
            _check_optimizer(optimizer, parameters, [bank for one in trained.values() for bank in one.factor_banks()])
        if state.is_world_process_zero:
            for name, one in trained.items():
                count = sum(p.numel() for p in one.parameters())
                _log.info(
                    f"RepLoRA: {count:,} parameters of {name!r} train. They deploy as {one.deployed_count():,} of LoRA."
                )

    def on_save(self, args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        """Write the generators where the checkpoint has none, as `save_pretrained` has not written it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir() or is_sharded(model):
            return
        for name, generators in _generators(model).items():
            own = folder if name == "default" else folder / name
            if not any((place / FILE_NAME).exists() for place in (own, folder)):
                write(generators, own)


def _generators(model: nn.Module | None) -> dict[str, Any]:
    present = getattr(host_of(model), "replora", None) if model is not None else None
    return present.generators() if isinstance(present, Reparameterized) else {}


def _resumes_without_default(model: nn.Module) -> bool:
    """Whether this model's adapter `default` is not read back when a Trainer of the installed version resumes."""
    host: Any = host_of(model)
    installed = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return is_peft_model(host) and len(host.peft_config) > 1 and installed < _READS_ALL_ADAPTERS


def _has_shares(model: nn.Module, optimizer: Any) -> bool:
    """Whether the optimizer holds shares of the parameters instead of these, as those of FSDP and DeepSpeed do."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return is_sharded(model) or type(optimizer).__module__.startswith("deepspeed")


def _check_optimizer(optimizer: Any, parameters: dict[int, str], banks: list[Any]) -> None:
    """Refuse an optimizer without these parameters, and warn of weight decay on those that should have none."""
    decay = {id(p): float(group.get("weight_decay", 0)) for group in optimizer.param_groups for p in group["params"]}
    if missing := [name for key, name in parameters.items() if key not in decay]:
        raise RepLoRAError(
            f"RepLoRACallback: the optimizer lacks {len(missing)} of the {len(parameters)} parameters of RepLoRA, such "
            f"as {missing[0]}. It was made before replora.reparameterize: make it afterwards."
        )
    if pulled := {decay[id(p)] for bank in banks for p in bank.no_weight_decay() if decay.get(id(p))}:
        warnings.warn(
            f"A weight decay of {max(pulled)} pulls the diagonals of RepLoRA to 0. Leave the optimizer to the trainer, "
            "or make it with replora.parameter_groups(model).",
            stacklevel=2,
        )
