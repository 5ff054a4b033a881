"""What a user chooses: the method and its options, checked where they are made.

`AdapterConfig` is the common base of all methods, so that a configuration can swap one for another by `class_path`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Literal, TypeVar

from replora.errors import RepLoRAError, nearest

Config = TypeVar("Config")
Factors = Literal["mlp", "linear", "none"]
Activation = Literal["gelu", "relu", "tanh", "silu", "identity"]
PeftMethod = Literal["lora", "dora", "ia3", "oft", "boft", "loha", "lokr", "hra"]


# PEFT's name of an option -> ours.
PEFT_NAMES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}


def _accept_peft_names(cls: type[Config]) -> type[Config]:
    """Let the constructor take `PEFT_NAMES` as keywords too; its signature, and so the command line, has ours alone."""
    original = cls.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        for other, name in PEFT_NAMES.items():
            if other in options:
                value = options.pop(other)
                if options.setdefault(name, value) != value:
                    raise RepLoRAError(f"{other} differs from {name}: {options[name]!r}. Give one of the two.")
        original(self, *args, **options)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


class AdapterConfig(ABC):
    """Base of all methods: how a frozen backbone is made trainable."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's short name, as it appears in tables and file names."""


@_accept_peft_names
@dataclass(frozen=True)
class RepLoRAConfig(AdapterConfig):
    """RepLoRA, its linear ablation and vanilla LoRA: frozen W0 plus (alpha / rank) * B A on chosen projections.

    The three differ in nothing but where A and B come from, see `replora.adapters.factors`.

    PEFT's names `r`, `lora_alpha`, `lora_dropout` and `target_modules` are accepted as keywords too.

    Args:
        rank: Inner dimension r of the update, at least 1.
        alpha: Numerator of the update's scale alpha / rank, above 0. Default: equal to `rank`, a scale of 1.
        factors: `mlp` is RepLoRA (A and B come from an MLP on two diagonal matrices), `linear` the same without the
            non-linearity (the paper's "simple linear" reparameterisation), `none` vanilla LoRA (A and B are free).
        hidden: Width h of the MLP's hidden layer, at least 1. Default: twice `rank`. Below `rank` it bounds the rank of
            the update. Unused by `none`.
        activation: The MLP's non-linearity. Unused by `linear` and `none`.
        dropout: Probability in [0, 1) of dropping an input element of the update during training.
        targets: What is adapted: roles (`q`, `k`, `v`, `out`, `fc1`, `fc2`, `gate`, `up`, `down`), full
            module names, shell patterns of them (`*.mlp.fc1`), the ends of them (`q_proj`, `mlp.fc1`), or what
            `describe(model)["targets"]` returns (`blocks.0.attn.qkv[q]`).
        sharing: `group` shares the diagonals and the first layer among the targets of one attention module (or of one
            MLP), as the paper shares query and value; `none` gives each target its own.
        blocks: `all`, or the indices of the blocks to adapt, counted from 0 in the model's order.
        scale_exponent: The generated factors are multiplied by hidden ** -scale_exponent, in [0, 1]. It sets how far a
            step of the optimiser moves A and B: at 0.5 the learning rates that suit LoRA are near RepLoRA's best ones.
        init: `zero` starts with an update of exactly 0 (B = 0). `normal002` draws A and B from N(0, 0.02), as public
            LoRA baselines on ViT do by accident; for `factors: none` alone.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    rank: int = 8
    alpha: float | None = None
    factors: Factors = "mlp"
    hidden: int | None = None
    activation: Activation = "tanh"
    dropout: float = 0.0
    targets: Sequence[str] = ("q", "v")
    sharing: Literal["group", "none"] = "group"
    blocks: Literal["all"] | Sequence[int] = "all"
    scale_exponent: float = 0.5
    init: Literal["zero", "normal002"] = "zero"

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.alpha, self.dropout, self.targets)
        _require(self.width >= 1, "hidden", self.hidden, "a width of at least 1")
        _require(0 <= self.scale_exponent <= 1, "scale_exponent", self.scale_exponent, "a number in [0, 1]")
        _check_choice("factors", self.factors, ("mlp", "linear", "none"))
        _check_choice("activation", self.activation, ("gelu", "relu", "tanh", "silu", "identity"))
        _check_choice("sharing", self.sharing, ("group", "none"))
        _check_choice("init", self.init, ("zero", "normal002"))
        if self.init == "normal002" and self.factors != "none":
            raise RepLoRAError("init: normal002 imitates public LoRA baselines, so it needs factors: none.")
        if isinstance(self.blocks, str):
            _require(self.blocks == "all", "blocks", self.blocks, "'all' or a list of block indices such as [0, 1]")
        else:
            _require(len(self.blocks) > 0, "blocks", self.blocks, "'all' or at least one block index")

    @property
    def name(self) -> str:
        return {"mlp": "replora", "linear": "linear", "none": "lora"}[self.factors]

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of B A."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    @property
    def width(self) -> int:
        """h, the width of the MLP's hidden layer."""
        return 2 * self.rank if self.hidden is None else self.hidden

    @property
    def nonlinearity(self) -> Activation:
        """The activation in force: the linear ablation has none."""
        return "identity" if self.factors == "linear" else self.activation


@_accept_peft_names
@dataclass(frozen=True)
class LoRAConfig(RepLoRAConfig):
    """Vanilla LoRA (Hu et al., 2022): the same as `RepLoRAConfig(factors="none")`, with only the options it has.

    The options are those of `RepLoRAConfig`.
    """

    factors: Factors = field(default="none", init=False)
    hidden: int | None = field(default=None, init=False)
    activation: Activation = field(default="tanh", init=False)
    scale_exponent: float = field(default=0.5, init=False)


@dataclass(frozen=True)
class FullConfig(AdapterConfig):
    """Full fine-tuning: every parameter trains."""

    @property
    def name(self) -> str:
        return "full"


@dataclass(frozen=True)
class LinearProbeConfig(AdapterConfig):
    """Linear probe: the backbone stays as it is, only the head trains."""

    @property
    def name(self) -> str:
        return "linear_probe"


@dataclass(frozen=True)
class BitFitConfig(AdapterConfig):
    """BitFit (Ben Zaken et al., 2022): all bias vectors of the backbone train, and the head."""

    @property
    def name(self) -> str:
        return "bitfit"


@_accept_peft_names
@dataclass(frozen=True)
class PeftMethodConfig(AdapterConfig):
    """Another method through the `peft` library, on the same roles or patterns as RepLoRA.

    `peft` adapts whole modules. On a fused projection (timm's `qkv`) the roles `q` and `v` therefore mean the joint
    update of q, k and v with one A, which is not what RepLoRA and `factors: none` do there.

    Args:
        method: `dora`, or another method of `peft`.
        rank: Inner dimension of the update, at least 1. `oft`, `boft` and `ia3` have none and do not use it.
        alpha: Numerator of the scale alpha / rank, above 0. Default: equal to `rank`.
        dropout: Probability in [0, 1) of dropping an input element of the update, where the method has that.
        targets: Roles or patterns of module names, as for `RepLoRAConfig`.
        blocks: `all`, or the indices of the blocks to adapt.
        options: Further arguments of the method's config class in `peft`, such as `{"init_lora_weights": "olora"}`.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    method: PeftMethod = "dora"
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: Sequence[str] = ("q", "v")
    blocks: Literal["all"] | Sequence[int] = "all"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.alpha, self.dropout, self.targets)
        _check_choice("method", self.method, PeftMethod.__args__)  # type: ignore[attr-defined]

    @property
    def name(self) -> str:
        return self.method if self.method != "lora" else "peft_lora"


# Methods of `peft` that have neither rank nor scale.
_WITHOUT_RANK = ("ia3", "oft", "boft")


def acting_options(config: AdapterConfig) -> dict[str, Any]:
    """The options, by their names, that decide what trained tensors of given shapes compute: not dropout, not init."""
    if isinstance(config, RepLoRAConfig):
        options: dict[str, Any] = {
            "factors": config.factors,
            "rank": config.rank,
            "alpha": config.scale * config.rank,
        }
        if config.factors == "none":
            return options
        generator = {"hidden": config.width, "activation": config.nonlinearity, "scale_exponent": config.scale_exponent}
        return options | generator
    if isinstance(config, PeftMethodConfig):
        scale = {} if config.method in _WITHOUT_RANK else {"rank": config.rank, "alpha": config.alpha or config.rank}
        return {"method": config.method, **scale, "options": dict(config.options)}
    return {}


def _check_rank(rank: int, alpha: float | None, dropout: float, targets: Sequence[str]) -> None:
    _require(rank >= 1, "rank", rank, "an integer of at least 1")
    _require(alpha is None or alpha > 0, "alpha", alpha, "a number above 0")
    _require(0 <= dropout < 1, "dropout", dropout, "a probability in [0, 1)")
    _require(
        not isinstance(targets, str) and len(targets) > 0,
        "targets",
        targets,
        "a list of roles or names, such as [q, v]",
    )


def _require(holds: bool, option: str, value: object, wanted: str) -> None:
    if not holds:
        raise RepLoRAError(f"{option}: {value!r} is out of range. It must be {wanted}.")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RepLoRAError(f"{option}: {value!r} is not known. {nearest(str(value), choices)}")
