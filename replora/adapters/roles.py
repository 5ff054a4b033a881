"""The roles that the layers of known families play: by their names, and by their classes where one layer plays several.

A fused layer computes several projections at once, in one of two layouts: one after the other, [q | k | v], or so for
each head or group of heads, [q | k | v | q | k | v ...]. The second is *interleaved*. Both are one list of widths,
which is repeated until the rows are used up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from replora.adapters.low_rank.layer import Interleaved, Rows, features, is_linear

ROLES = ("q", "k", "v", "out", "fc1", "fc2", "gate", "up", "down")

# Full name of a projection -> its role; "group" is the module that holds the group. The first match counts.
_NAMES = [
    ("q", r"(?P<group>.*attention)\.(attention|self)\.query"),
    ("k", r"(?P<group>.*attention)\.(attention|self)\.key"),
    ("v", r"(?P<group>.*attention)\.(attention|self)\.value"),
    ("out", r"(?P<group>.*attention)\.output\.dense"),
    ("q", r"(?P<group>.*)\.(q_proj|query_proj|query|q_lin|to_q|wq|Wq|q|q_b_proj|q_attn)"),
    ("k", r"(?P<group>.*)\.(k_proj|key_proj|key|k_lin|to_k|wk|Wk|k)"),
    ("v", r"(?P<group>.*)\.(v_proj|value_proj|value|v_lin|to_v|wv|Wv|v)"),
    ("out", r"(?P<group>.*(attn|attention)[^.]*)\.(out_proj|o_proj|proj|out_lin|to_out\.0|wo|Wo|o|dense|c_proj)"),
    ("out", r"(?P<group>.*Attention)\.o"),
    ("fc1", r"(?P<group>.*)\.intermediate\.dense"),
    ("fc2", r"(?P<group>.*)\.output\.dense"),
    ("fc1", r"(?P<group>.*\bmlp)\.(0|Wi|fc_in)"),
    ("fc2", r"(?P<group>.*\bmlp)\.(3|Wo|fc_out|c_proj)"),
    ("fc1", r"(?P<group>.*)\.(fc1|lin1|dense_h_to_4h|c_fc)"),
    ("fc2", r"(?P<group>.*)\.(fc2|lin2|dense_4h_to_h)"),
    ("gate", r"(?P<group>.*)\.gate_proj"),
    ("up", r"(?P<group>.*)\.up_proj"),
    ("down", r"(?P<group>.*)\.down_proj"),
    ("fc1", r"(?P<group>.*DenseReluDense)\.wi"),
    ("gate", r"(?P<group>.*DenseReluDense)\.wi_0"),
    ("up", r"(?P<group>.*DenseReluDense)\.wi_1"),
    ("fc2", r"(?P<group>.*DenseReluDense)\.wo"),
]
_FUSED_QKV = re.compile(r"(qkv|qkv_proj|Wqkv)")
# Small networks beside the attention proper, which happen to use the same names.
_NO_ROLE = re.compile(r".*\b(meta_mlp|cpb_mlp)\b.*")

Parts = list[tuple[str, int]]  # a role, or "" for rows of none, and a number of rows


def _equal(*roles: str) -> Callable[[Any, int], Parts]:
    """Equal parts, one after the other."""
    return lambda _, rows: [(role, rows // len(roles)) for role in roles]


def _per_head(*roles: str) -> Callable[[Any, int], Parts]:
    """Equal parts for each head; the module says how many heads there are under one of the usual names."""

    def parts(module: Any, rows: int) -> Parts:
        names = ("num_heads", "num_attention_heads")
        heads = next(getattr(m, n) for m in (module, getattr(module, "config", None)) for n in names if hasattr(m, n))
        return [(role, rows // heads // len(roles)) for role in roles]

    return parts


def _grouped(attention: Any, _rows: int) -> Parts:
    """All query heads, then fewer key heads, then as many value heads."""
    heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads
    return [
        (role, n * attention.head_dim)
        for role, n in zip("qkv", [heads, *2 * [attention.num_key_value_heads]], strict=True)
    ]


def _falcon(attention: Any, rows: int) -> Parts:
    heads, key_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_dim
    if attention.new_decoder_architecture:
        return [("q", heads // key_heads * size), ("k", size), ("v", size)]
    return (
        [("q", heads * size), ("k", size), ("v", size)]
        if attention.multi_query
        else _per_head("q", "k", "v")(attention, rows)
    )


def _bigcode(attention: Any, rows: int) -> Parts:
    if attention.is_cross_attention:
        return _equal("k", "v")(attention, rows)
    if attention.multi_query:
        return [("q", attention.embed_dim), ("k", attention.kv_dim), ("v", attention.kv_dim)]
    return _per_head("q", "k", "v")(attention, rows)


def _codegen(attention: Any, rows: int) -> Parts:
    """Four parts for as many accelerators of the training, each with values before keys."""
    return [(role, rows // 3 // attention.mp_num) for role in ("q", "v", "k")]


def _maxvit(attention: Any, rows: int) -> Parts:
    return (_per_head if attention.head_first else _equal)("q", "k", "v")(attention, rows)


def _key_and_value_of_heads(attention: Any, _rows: int) -> Parts:
    return [(role, attention.key_dim) for role in ("q", "k")] + [("v", attention.val_dim)]


def _latent(attention: Any, _rows: int) -> Parts:
    """Keys (without their rotary part, which all heads share) and values from the latent vector of a token."""
    return [("k", attention.qk_nope_head_dim), ("v", attention.v_head_dim)]


def _mamba2(mixer: Any, rows: int) -> Parts:
    inner = mixer.intermediate_size
    return [("gate", inner), ("up", inner), ("", rows - 2 * inner)]


_QKV, _HEADS = _equal("q", "k", "v"), _per_head("q", "k", "v")
_GPT2 = {
    "c_attn": lambda attention, rows: _equal(*"qkv"[attention.is_cross_attention :])(attention, rows),
}
_MAMBA = {"in_proj": _equal("up", "gate"), "out_proj": _equal("down")}
# Last part of a module's file and class -> layer inside it -> the parts that its rows are.
_LAYOUTS: dict[str, Mapping[str, Callable[[Any, int], Parts]]] = {
    "modeling_bark.BarkSelfAttention": {"att_proj": _QKV},
    "modeling_bark.BarkSelfFlashAttention2": {"att_proj": _QKV},
    "modeling_bloom.BloomAttention": {"query_key_value": _HEADS},
    "modeling_codegen.CodeGenAttention": {"qkv_proj": _codegen},
    "modeling_dbrx.DbrxAttention": {"Wqkv": _grouped},
    "modeling_deberta.DisentangledSelfAttention": {"in_proj": _HEADS},
    "modeling_decision_transformer.DecisionTransformerGPT2Attention": _GPT2,
    "modeling_exaone4_5.Exaone4_5_VisionAttention": {"qkv": _grouped},
    "modeling_falcon.FalconAttention": {"query_key_value": _falcon},
    "modeling_falcon.FalconFlashAttention2": {"query_key_value": _falcon},
    "modeling_falcon_mamba.FalconMambaMixer": _MAMBA,
    "modeling_gpt2.GPT2Attention": _GPT2,
    "modeling_gpt_bigcode.GPTBigCodeAttention": {"c_attn": _bigcode},
    "modeling_gpt_neox.GPTNeoXAttention": {"query_key_value": _HEADS},
    "modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention": {"query_key_value": _HEADS},
    "modeling_imagegpt.ImageGPTAttention": _GPT2,
    "modeling_jetmoe.JetMoeAttention": {"kv_proj": _equal("k", "v")},
    "modeling_mamba.MambaMixer": _MAMBA,
    "modeling_mamba2.Mamba2Mixer": {"in_proj": _mamba2, "out_proj": _equal("down")},
    "modeling_minimax.MiniMaxLightningAttention": {"qkv_proj": _HEADS},
    "modeling_openai.Attention": {"c_attn": _QKV},
    "modeling_persimmon.PersimmonAttention": {"query_key_value": _HEADS},
    "modeling_phi3.Phi3Attention": {"qkv_proj": _grouped},
    "modeling_phi4_multimodal.Phi4MultimodalAttention": {"qkv_proj": _grouped},
    "convit.GPSA": {"qk": _equal("q", "k")},
    "efficientformer.Attention": {"qkv": _key_and_value_of_heads},
    "maxxvit.AttentionCl": {"qkv": _maxvit},
    "pvt_v2.Attention": {"kv": _equal("k", "v")},
    "tiny_vit.Attention": {"qkv": _key_and_value_of_heads},
    "tnt.Attention": {"qk": _equal("q", "k")},
    "twins.GlobalSubSampleAttn": {"kv": _equal("k", "v")},
    "volo.ClassAttention": {"kv": _equal("k", "v")},
}


class Role(NamedTuple):
    """A role that a layer plays, the module that holds its group, and its rows (None for all)."""

    name: str
    group: str
    rows: Rows | None


def roles_of(name: str, module: nn.Module, modules: Mapping[str, nn.Module]) -> list[Role]:
    """The roles that a linear layer plays: several for a fused projection, one for a plain one, none for most.

    Args:
        name: The layer's name.
        module: The layer.
        modules: All modules by name.
    """
    if _NO_ROLE.fullmatch(name):
        return []
    parent, _, own = name.rpartition(".")
    holder = modules.get(parent)
    outputs = features(module)[1]
    if layout := _layout(holder, own):
        return list(_cut(layout(holder, outputs), parent, outputs))
    if isinstance(holder, nn.MultiheadAttention) and own == "out_proj":
        return [Role("out", parent, None)]
    if _FUSED_QKV.fullmatch(own):
        return list(_cut(_QKV(holder, outputs), parent, outputs)) if _is_in_thirds(module, parent, modules) else []
    for role, pattern in _NAMES:
        if match := re.fullmatch(pattern, name):
            return [Role(role, match["group"], None)]
    return []


def _layout(holder: nn.Module | None, own: str) -> Callable[[Any, int], Parts] | None:
    for cls in type(holder).__mro__:
        if layouts := _LAYOUTS.get(f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"):
            return layouts.get(own)
    if own == "kv_b_proj" and hasattr(holder, "qk_nope_head_dim"):
        return _latent
    return _equal("gate", "up") if own == "gate_up_proj" else None


def _cut(parts: Parts, group: str, outputs: int) -> Iterator[Role]:
    """The rows of each part; interleaved where the parts repeat."""
    period, first = sum(width for _, width in parts), 0
    for role, width in parts:
        last = first + width
        if role:
            rows: Rows = (first, last) if period == outputs else Interleaved(first, last, period)
            yield Role(role, group, None if width == outputs else rows)
        first = last


def _is_in_thirds(qkv: nn.Module, attention: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether q, k and v are equal thirds: not so with fewer key than query heads, where thirds would be wrong rows."""
    inner, outputs = features(qkv)
    for name in ("proj", "out_proj", "o_proj"):
        projection = modules.get(f"{attention}.{name}")
        if projection is not None and is_linear(projection):
            inner = features(projection)[0]
    return outputs == 3 * inner
