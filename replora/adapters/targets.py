"""What query, value, ... are called: from roles or name patterns to the weight matrices of a model.

A *target* is one weight matrix to adapt: the weight of an `nn.Linear`, some rows of it (the query rows of timm's fused
`qkv`), or some rows of `nn.MultiheadAttention.in_proj_weight`. A *group* is the module whose targets share structure:
an attention module for q, k, v and out, an MLP for fc1, fc2, gate, up and down.

Verified families: timm ViT, DeiT, Swin, SwinV2, BEiT, EVA02; torchvision ViT and Swin (2-D and 3-D); transformers ViT,
VideoMAE, BERT, BART, LLaMA and all that name their projections like one of these; `torch.nn.MultiheadAttention`.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from replora.adapters.low_rank.layer import Rows, features, is_linear, row_count
from replora.adapters.roles import ROLES, roles_of
from replora.adapters.wrappers import plain_name
from replora.errors import RepLoRAError, alike, check_arguments, listed

# The part of a name up to its last numbered component: `blocks.3`, `layers.1.blocks.0`, `layers.encoder_layer_7`.
_BLOCK = re.compile(r"(?P<block>.*?(^|[._])\d+)(?=\.(?!.*(^|[._])\d+(\.|$))|$)")


# Numbered modules inside of one block: the experts of a mixture, and the sublayers of T5.
_INSIDE_A_BLOCK = re.compile(
    r"(\.(\w*experts?|mlps|self_attn)\.\d+|(?<=\.)layer\.\d+(?=\.(\w+Attention|DenseReluDense)))"
)
_MLP_ROLES = ("fc1", "fc2", "gate", "up", "down")


class TargetNotFoundError(RepLoRAError):
    """A role or pattern matches nothing in the model, or nothing that can be adapted."""


@dataclass(frozen=True)
class Target:
    """One weight matrix to adapt, or a range of its rows.

    Attributes:
        module: Dotted name of the `nn.Linear` or `nn.MultiheadAttention`.
        attribute: Which parameter of the module: `weight`, or `in_proj_weight` and the like.
        role: One of `ROLES`, or the module's own name where a pattern chose it.
        group: Name of the module that holds its group.
        rows: First and last + 1 row of the matrix, `Interleaved` if they repeat for each head; None for all rows.
        shape: (in, out) of the adapted rows.
    """

    module: str
    attribute: str
    role: str
    group: str
    rows: Rows | None
    shape: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.name}: role {self.role}, {self.shape[1]} x {self.shape[0]}, shares with {self.group}"

    @property
    def name(self) -> str:
        """How the target is written in messages and files: `blocks.0.attn.qkv[q]`, `layers.0.self_attn.q_proj`."""
        partial = self.rows is not None or self.attribute != "weight"
        return f"{self.module}[{self.role}]" if partial else self.module


@check_arguments
def find_targets(
    model: nn.Module,
    wanted: Sequence[str] = ("q", "v"),
    blocks: Literal["all"] | Sequence[int] = "all",
    skip: Iterable[nn.Module] = (),
) -> list[Target]:
    """The targets that a method with these options adapts, in the model's order. The model is not changed.

        for target in replora.find_targets(model, ["q", "v"]):
            print(target)  # blocks.0.attn.qkv[q]: role q, 768 x 768, shares with blocks.0.attn

    Args:
        model: Model to look into.
        wanted: Roles, module names or their ends, patterns of full names as in a shell, or `Target.name`s.
        blocks: `all`, or indices of blocks, counted from 0 in the model's order.
        skip: Modules to leave out, such as a head that trains as a whole.

    Raises:
        TargetNotFoundError: An entry of `wanted` matches nothing, matches no linear layer, or two entries choose the
            same rows; or an index of `blocks` does not exist.
    """
    skipped = {id(inner) for module in skip for inner in module.modules()}
    modules = {plain_name(name): m for name, m in model.named_modules() if name and id(m) not in skipped}
    by_role = [target for name, module in modules.items() for target in _targets_of(name, module, modules)]

    chosen: list[Target] = []
    for entry in wanted:
        if entry in ROLES:
            found = [target for target in by_role if target.role == entry]
        else:
            found = _named(entry, modules, by_role)
        if not found:
            raise TargetNotFoundError(_nothing_found(entry, model, modules, by_role))
        chosen += found
    _check_no_overlap(chosen)

    numbers = _block_numbers(modules)
    if blocks != "all":
        count = len(set(numbers.values()))
        unknown = sorted(set(blocks) - set(range(count)))
        if unknown:
            raise TargetNotFoundError(
                f"blocks: {unknown} asked for, but {type(model).__name__} has blocks 0 to {count - 1}."
            )
        chosen = [target for target in chosen if numbers.get(_block_of(target.group)) in set(blocks)]
        if not chosen:
            raise TargetNotFoundError(f"blocks: {list(blocks)} hold none of the targets {list(wanted)}.")
    _warn_of_packed_experts(wanted, blocks, modules, numbers)
    position = {name: i for i, name in enumerate(modules)}
    return sorted(chosen, key=lambda target: (position[target.module], target.rows or (0, 0)))


def _named(entry: str, modules: dict[str, nn.Module], by_role: list[Target]) -> list[Target]:
    """The targets of a module name, of the end of one, of a shell pattern, or of a `Target.name`."""
    # A target written out keeps the role and the group that it has in `describe`.
    known = {target.name: target for target in by_role}
    if entry in known:
        return [known[entry]]
    linear = {name: module for name, module in modules.items() if is_linear(module)}
    if by_end := [name for name in linear if _ends_with(name, entry)]:
        return [known.get(name) or _whole(name, linear[name]) for name in by_end]
    if matched := [_whole(name, module) for name, module in linear.items() if fnmatch.fnmatch(name, entry)]:
        return matched
    # An attention module by its name: all that its input projection holds.
    attention = {name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    named = {name for name in attention if _matches(name, entry)}
    return [target for target in by_role if target.module in named]


def _ends_with(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _matches(name: str, entry: str) -> bool:
    """Whether an entry is a name, the end of one, or a shell pattern of it."""
    return _ends_with(name, entry) or fnmatch.fnmatch(name, entry)


def _targets_of(name: str, module: nn.Module, modules: dict[str, nn.Module]) -> list[Target]:
    """The targets that one module holds: a role each."""
    if isinstance(module, nn.MultiheadAttention):
        return _multihead_attention_targets(name, module)
    if not is_linear(module):
        return []
    inputs, outputs = features(module)
    return [
        Target(name, "weight", role, group, rows, (inputs, outputs if rows is None else row_count(rows, outputs)))
        for role, group, rows in roles_of(name, module, modules)
    ]


def _multihead_attention_targets(name: str, module: nn.MultiheadAttention) -> list[Target]:
    width = module.embed_dim
    if module._qkv_same_embed_dim:
        parts = [("q", 0), ("k", width), ("v", 2 * width)]
        return [Target(name, "in_proj_weight", role, name, (a, a + width), (width, width)) for role, a in parts]
    inputs = [("q", width), ("k", module.kdim or width), ("v", module.vdim or width)]
    return [Target(name, f"{role}_proj_weight", role, name, None, (n_in, width)) for role, n_in in inputs]


def _whole(name: str, module: nn.Module) -> Target:
    parent, _, own = name.rpartition(".")
    return Target(name, "weight", own, parent or name, None, features(module))


def _block_of(name: str) -> str:
    match = _BLOCK.match(_INSIDE_A_BLOCK.sub("", name))
    return match["block"] if match else ""


def _block_numbers(modules: dict[str, nn.Module]) -> dict[str, int]:
    """Block name -> index, for every numbered module that holds an attention or MLP role."""
    groups = [t.group for name, module in modules.items() for t in _targets_of(name, module, modules)]
    names = dict.fromkeys(_block_of(group) for group in groups if _block_of(group))
    return {name: i for i, name in enumerate(names)}


def _warn_of_packed_experts(
    wanted: Sequence[str],
    blocks: Literal["all"] | Sequence[int],
    modules: dict[str, nn.Module],
    numbers: dict[str, int],
) -> None:
    """Name the experts of a mixture that stay frozen beside the targets, because one parameter holds all of them."""
    chosen = [name for name in _packed_experts(modules) if blocks == "all" or numbers.get(_block_of(name)) in blocks]
    frozen = [name for name in chosen if any(_means(entry, name) for entry in wanted)]
    if frozen:
        warnings.warn(
            f"targets: {', '.join(wanted)} leave the experts {listed(frozen, 2)} frozen: each of these parameters "
            "holds all experts of a layer, and only linear layers can be adapted. The other targets are.",
            stacklevel=4,
        )


def _packed_experts(modules: dict[str, nn.Module]) -> list[str]:
    """Names of the parameters that hold the matrices of several experts."""
    return [
        f"{name}.{own}"
        for name, module in modules.items()
        if "Expert" in type(module).__name__ and not is_linear(module)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    ]


def _means(entry: str, parameter: str) -> bool:
    """Whether an entry of the targets would choose a parameter of experts, if it were a layer."""
    return entry in _MLP_ROLES if entry in ROLES else _matches(parameter, entry)


def _check_no_overlap(targets: list[Target]) -> None:
    taken: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        for other in taken.setdefault((target.module, target.attribute), []):
            if target.rows is None or other.rows is None or target.rows == other.rows:
                raise TargetNotFoundError(
                    f"targets: {target.name} is chosen twice; remove one of the entries that match it."
                )
        taken[target.module, target.attribute].append(target)


def _nothing_found(entry: str, model: nn.Module, modules: dict[str, nn.Module], by_role: list[Target]) -> str:
    where = type(model).__name__
    whole = [name for name in map(plain_name, dict(model.named_modules())) if name and name not in modules]
    if inside := [name for name in whole if _matches(name, entry)]:
        return (
            f"targets: {entry!r} matches {inside[0]} alone, which trains as a whole (also_train). Name it in one of "
            "the two options."
        )
    kinds = {type(m) for name, m in modules.items() if _matches(name, entry)}
    others = sorted(kind.__name__ if kind.__name__ != "Linear" else f"{kind.__module__}.Linear" for kind in kinds)
    if others:
        return (
            f"targets: {entry!r} matches only modules that cannot be adapted in {where}: {', '.join(others)}. "
            "nn.Linear, transformers' Conv1D and nn.MultiheadAttention can be."
        )
    if packed := [name for name in _packed_experts(modules) if _means(entry, name)]:
        return (
            f"targets: {entry!r} would be the experts {listed(packed, 2)} in {where}, but each of these parameters "
            "holds all experts of a layer, and only linear layers can be adapted. Leave it out."
        )
    roles = list(dict.fromkeys(target.role for target in by_role))
    linear = [name for name, m in modules.items() if is_linear(m)]
    if not linear and not roles:
        return f"targets: {entry!r} matches nothing: {where} has no nn.Linear and no nn.MultiheadAttention."
    layers = alike(entry, linear) or f"Its linear layers: {listed(linear) or 'none'}."
    return (
        f"targets: {entry!r} matches nothing in {where}. Roles found in it: {', '.join(roles) or 'none'}. {layers} "
        "Name a role, a module or the end of its name such as 'mlp.fc1', or a pattern such as '*.mlp.fc1'."
    )
