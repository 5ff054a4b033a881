"""What a user chooses: the method and its options, checked where they are made.

`AdapterConfig` is the common base of all methods, so that a configuration can swap one for another by `class_path`.
"""

from __future__ import annotations

import inspect
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from replora.errors import RepLoRAError, nearest
from replora.former_names import FORMER_NAMES

Factors = Literal["mlp", "linear", "none"]
Activation = Literal["gelu", "relu", "tanh", "silu", "identity"]
Sharing = Literal["group", "none", "tied"]
PeftMethod = Literal["lora", "dora", "ia3", "oft", "boft", "loha", "lokr", "hra"]


# Names of the same options in peft's LoraConfig. Every method that has the option takes them as keyword arguments.
PEFT_NAMES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}


class _TakesPeftNames(ABCMeta):
    """Lets `Config(r=8, target_modules=[...])` mean `Config(rank=8, targets=[...])`.

    The constructors do not list these names, so that the command line shows each option once.
    """

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, for `help` and completion, which would show that of `__call__`."""
        constructor = inspect.signature(cls.__init__)  # type: ignore[misc]
        return constructor.replace(parameters=list(constructor.parameters.values())[1:], return_annotation=cls)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        known = _parameters(cls)
        given = dict(zip(known, args, strict=False)) | options
        for other, own in PEFT_NAMES.items():
            if other in options and own in known:
                value = options.pop(other)
                if own not in given:
                    options[own] = value
                elif not _equal(given[own], value):
                    raise RepLoRAError(
                        f"{cls.__name__}: {other}={value!r} and {own}={given[own]!r} are two names of one option. "
                        "Give one of them."
                    )
        return super().__call__(*args, **options)


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of an option are the same: a list and a tuple of the same items are."""
    return bool((list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other))


def _parameters(cls: type) -> list[str]:
    """Names of the constructor's arguments."""
    return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]  # type: ignore[misc]


class AdapterConfig(metaclass=_TakesPeftNames):
    """Base of all methods: how a frozen backbone is made trainable.

    The options may also be given under their names in peft's `LoraConfig`: `r`, `lora_alpha`, `lora_dropout` and
    `target_modules`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's short name, as it appears in tables and file names."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor that make an equal configuration."""
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.arguments().items())})"


@dataclass(frozen=True, repr=False)
class RepLoRAConfig(AdapterConfig):
    """RepLoRA, its linear ablation and vanilla LoRA: frozen W0 plus (alpha / rank) * B A on chosen projections.

    The three differ in nothing but where A and B come from, see `replora.adapters.low_rank.factors`.

    Args:
        rank: Rank r of the update: its inner dimension (>= 1).
        alpha: Numerator of the update's scale alpha / rank (> 0). Default: equal to `rank`, a scale of 1.
        factors: `mlp` is RepLoRA (A and B come from an MLP on two diagonal matrices), `linear` the same without the
            non-linearity (the paper's "simple linear" reparameterization), `none` vanilla LoRA (A and B are free).
        hidden: Width h of the MLP's hidden layer (>= 1). Default: twice `rank`. Below `rank` it bounds the rank of
            the update. Unused by `none`.
        activation: The MLP's non-linearity. Unused by `linear` and `none`.
        dropout: Probability in [0, 1) of dropping an input element of the update during training.
        targets: What to adapt: roles (`q`, `k`, `v`, `out`, `fc1`, `fc2`, `gate`, `up`, `down`); module names or their
            ends, as in peft (`q_proj`, `mlp.fc1`, `encoder.layers.0.proj`; an `nn.MultiheadAttention` stands for its
            query, key and value); patterns of full names as in a shell (`*.mlp.fc1`); or names from
            `replora.find_targets` and `replora.describe` (`blocks.0.attn.qkv[q]`).
        sharing: `group` shares the diagonals and the first layer among the targets of one attention module (or of one
            MLP), as the paper shares query and value; `none` gives each target its own. `tied` gives all targets of a
            group that have one shape (in, out) the same A and B, so q and v have half of LoRA's numbers; targets of
            other shapes share as in `group`. With `factors: none` only `tied` has an effect.
        blocks: `all`, or the indices of the blocks to adapt, counted from 0 in the model's order.
        scale_exponent: The generated factors are multiplied by hidden ** -scale_exponent, in [0, 1]. It sets how far a
            step of the optimizer moves A and B: at 0.5 the learning rates that suit LoRA are near RepLoRA's best ones.
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
    sharing: Sharing = "group"
    blocks: Literal["all"] | Sequence[int] = "all"
    scale_exponent: float = 0.5
    init: Literal["zero", "normal002"] = "zero"

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.alpha, self.dropout, self.targets)
        _check_generators(self.hidden, self.activation, self.sharing, self.scale_exponent)
        _check_choice("factors", self.factors, ("mlp", "linear", "none"))
        _check_choice("init", self.init, ("zero", "normal002"))
        if self.init == "normal002" and self.factors != "none":
            raise RepLoRAError("init: normal002 imitates public LoRA baselines, so it needs factors: none.")
        _check_blocks(self.blocks)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, RepLoRAConfig) else NotImplemented

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


@dataclass(frozen=True, init=False, repr=False, eq=False)
class LoRAConfig(RepLoRAConfig):
    """Vanilla LoRA: frozen W0 plus (alpha / rank) * B A, where A and B are free parameters.

    It adapts exactly the matrices that `RepLoRAConfig` adapts, and is `RepLoRAConfig(factors="none")` under the name
    that everybody knows.

    Args:
        rank: Rank r of the update: its inner dimension (>= 1).
        alpha: Numerator of the update's scale alpha / rank (> 0). Default: equal to `rank`, a scale of 1.
        dropout: Probability in [0, 1) of dropping an input element of the update during training.
        targets: What to adapt, as for `RepLoRAConfig`.
        blocks: `all`, or the indices of the blocks to adapt, counted from 0 in the model's order.
        init: `zero` starts with an update of exactly 0 (B = 0). `normal002` draws A and B from N(0, 0.02), as public
            LoRA baselines on ViT do by accident.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: Sequence[str] = ("q", "v"),
        blocks: Literal["all"] | Sequence[int] = "all",
        init: Literal["zero", "normal002"] = "zero",
    ) -> None:
        super().__init__(
            rank=rank, alpha=alpha, factors="none", dropout=dropout, targets=targets, blocks=blocks, init=init
        )


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


@dataclass(frozen=True)
class PeftMethodConfig(AdapterConfig):
    """Another method through the `peft` library, on the same roles or patterns as RepLoRA.

    `peft` adapts whole modules. On a fused projection (timm's `qkv`) the roles `q` and `v` therefore mean the joint
    update of q, k and v with one A, which is not what RepLoRA and `factors: none` do there.

    Args:
        method: `dora`, or another method of `peft`.
        rank: Inner dimension of the update (>= 1). `oft`, `boft` and `ia3` have none and do not use it.
        alpha: Numerator of the scale alpha / rank (> 0). Default: equal to `rank`.
        dropout: Probability in [0, 1) of dropping an input element of the update, where the method has that.
        targets: What to adapt, as for `RepLoRAConfig`.
        blocks: `all`, or the indices of the blocks to adapt.
        options: Further arguments of the method's config class in `peft`, such as `{"init_lora_weights": "olora"}`.
        reparameterize: Whether RepLoRA's generators produce A and B, as `replora.reparameterize` says; of `lora` and
            `dora` alone.
        hidden: Width h of the MLP's hidden layer (>= 1), with `reparameterize`. Default: twice the rank of each layer.
        activation: The MLP's non-linearity, with `reparameterize`; `identity` is the linear ablation.
        sharing: With `reparameterize`, `group` shares the diagonals and the first layer among the layers of one
            attention module (or of one MLP), `none` gives each layer its own, and `tied` gives those of one shape the
            same A and B. `peft` stores A and B of every layer, so the count of deployed numbers is LoRA's.
        scale_exponent: With `reparameterize`, the generated factors are multiplied by hidden ** -scale_exponent, in
            [0, 1].

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
    reparameterize: bool = False
    hidden: int | None = None
    activation: Activation = "tanh"
    sharing: Sharing = "group"
    scale_exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.alpha, self.dropout, self.targets)
        _check_blocks(self.blocks)
        _check_choice("method", self.method, PeftMethod.__args__)  # type: ignore[attr-defined]
        _check_generators(self.hidden, self.activation, self.sharing, self.scale_exponent)
        _require(isinstance(self.reparameterize, bool), "reparameterize", self.reparameterize, "true or false")
        if self.reparameterize and self.method not in _WITH_A_AND_B:
            raise RepLoRAError(
                f"reparameterize: {self.method!r} has no A and B that RepLoRA's generators could produce. Choose "
                f"method: {' or '.join(_WITH_A_AND_B)}, or reparameterize: false."
            )
        _require(
            isinstance(self.options, dict) and all(isinstance(name, str) for name in self.options),
            "options",
            self.options,
            "a dict of arguments by their names",
        )

    @property
    def name(self) -> str:
        names = {"lora": "replora_peft", "dora": "replora_dora"} if self.reparameterize else {"lora": "peft_lora"}
        return names.get(self.method, self.method)

    @property
    def generator_options(self) -> dict[str, Any]:
        """The arguments of `replora.reparameterize`."""
        return {name: getattr(self, name) for name in ("hidden", "activation", "sharing", "scale_exponent")}


# Methods of `peft` that have neither rank nor scale, and those of LoRA's matrices.
_WITHOUT_RANK = ("ia3", "oft", "boft")
_WITH_A_AND_B = ("lora", "dora")


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
        options = {"method": config.method, **scale, "options": dict(config.options)}
        if not config.reparameterize:
            return options
        width = config.hidden or 2 * config.rank
        return options | {"reparameterize": True} | config.generator_options | {"hidden": width}
    return {}


def _check_rank(rank: int, alpha: float | None, dropout: float, targets: Sequence[str]) -> None:
    _require(_is_whole(rank) and rank >= 1, "rank", rank, "an integer of at least 1")
    _require(alpha is None or (_is_number(alpha) and 0 < alpha < math.inf), "alpha", alpha, "a number above 0")
    _require(_is_number(dropout) and 0 <= dropout < 1, "dropout", dropout, "a probability in [0, 1)")
    _require(
        _is_collection(targets) and len(targets) > 0 and all(isinstance(target, str) for target in targets),
        "targets",
        targets,
        "a list of roles or names, such as [q, v]",
    )


def _check_generators(hidden: int | None, activation: str, sharing: str, exponent: float) -> None:
    _require(hidden is None or (_is_whole(hidden) and hidden >= 1), "hidden", hidden, "a width of at least 1")
    _require(_is_number(exponent) and 0 <= exponent <= 1, "scale_exponent", exponent, "a number in [0, 1]")
    _check_choice("activation", activation, Activation.__args__)  # type: ignore[attr-defined]
    _check_choice("sharing", sharing, Sharing.__args__)  # type: ignore[attr-defined]


def _check_blocks(blocks: Literal["all"] | Sequence[int]) -> None:
    if isinstance(blocks, str):
        _require(blocks == "all", "blocks", blocks, "'all' or a list of block indices such as [0, 1]")
    else:
        holds = _is_collection(blocks) and len(blocks) > 0 and all(map(_is_whole, blocks))
        _require(holds, "blocks", blocks, "'all' or at least one block index")


def _is_collection(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(holds: bool, option: str, value: object, wanted: str) -> None:
    if not holds:
        raise RepLoRAError(f"{option}: {value!r} is out of range. It must be {wanted}.")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RepLoRAError(f"{option}: {value!r} is not known. {nearest(str(value), choices)}")


def __getattr__(name: str) -> Any:
    """Find a class by the name that the checkpoint of an earlier run has for it."""
    if name in FORMER_NAMES:
        return globals()[FORMER_NAMES[name]]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
