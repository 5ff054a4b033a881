"""Log-likelihoods of the options of a question: one forward pass for all options of a prompt.

The options of a question follow one copy of its prompt, in one row:

    row        padding | prompt p_0 .. p_n | option 1: a_0 a_1 | option 2: b_0 b_1 b_2 | ...
    position         0 | 0 .. n            | n+1 n+2           | n+1 n+2 n+3           | ...

Each option attends to the prompt and to itself, and its positions continue those of the prompt, so its tokens have the
same probabilities as in a separate row. This requires that every layer sees the row only through this mask. A
convolution or a recurrence would carry one option into the next, and a window would be counted over all options: such
models get one row per option.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PADDING, _PROMPT = -1, 0  # segments of a row; option k is segment k + 1

# Names in transformers' configurations of layers that do not attend to the whole row.
_WHOLE = "full_attention"
_WINDOWED = {"sliding_attention", "chunked_attention"}
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_RECURRENT = re.compile(r"mamba|ssm|conv|linear_|lru_|rwkv")


@torch.inference_mode()
def option_log_likelihoods(
    model: nn.Module, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """log p(option | prompt) in nats, summed over the option's tokens, for every option of B questions.

    A model with layers other than attention by `position_ids` (ALiBi, convolutions, Mamba, linear attention), or with a
    window shorter than a prompt with its option, gets one row per option.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        prompts: Token ids of each question, at least one.
        options: Token ids of each option of each question, at least one token per option.

    Returns:
        For each question one number (<= 0) per option, computed in float32 from the model's logits.
    """
    longest = max(len(prompt) + max(map(len, few)) for prompt, few in zip(prompts, options, strict=True))
    if not _packs(model, longest):
        return _row_by_row(model, prompts, options)
    device = next(model.parameters()).device
    pairs = list(zip(prompts, options, strict=True))
    rows = [[*prompt, *itertools.chain.from_iterable(few)] for prompt, few in pairs]
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    position = torch.zeros_like(ids)
    segment = torch.full_like(ids, _PADDING)
    # For every token of an option: its row, the column that predicts it, its id, and which option it belongs to.
    where: list[tuple[int, int, int, int]] = []
    count = 0
    for r, (prompt, few) in enumerate(pairs):
        start = length - len(rows[r])
        ids[r, start:] = torch.tensor(rows[r])
        column = start + len(prompt)
        position[r, start:column] = torch.arange(len(prompt))
        segment[r, start:column] = _PROMPT
        last_of_prompt = column - 1
        for k, option in enumerate(few):
            end = column + len(option)
            position[r, column:end] = torch.arange(len(prompt), len(prompt) + len(option))
            segment[r, column:end] = k + 1
            predictors = [last_of_prompt, *range(column, end - 1)]
            where += [(r, before, token, count) for before, token in zip(predictors, option, strict=True)]
            column, count = end, count + 1
    kept = length - min(column for _, column, _, _ in where)
    logits = _last_logits(
        model,
        kept,
        input_ids=ids.to(device),
        position_ids=position.to(device),
        attention_mask=_additive_mask(segment.to(device), _dtype_of(model)),
    )
    row, column_of, token, option_of = torch.tensor(where, device=device).unbind(1)
    log_p = logits[row, column_of - length].float().log_softmax(-1).gather(1, token[:, None])[:, 0]
    sums = log_p.new_zeros(count).index_add_(0, option_of, log_p).tolist()
    scores = iter(sums)
    return [[next(scores) for _ in few] for few in options]


def takes(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def _packs(model: nn.Module, longest: int) -> bool:
    """Whether the options of a prompt can share a row. `longest`: tokens of the longest prompt with one option."""
    if not takes(model, "position_ids"):
        return False
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    known = config.to_dict()
    kinds = set(getattr(config, "layer_types", None) or ())
    if known.get("alibi") or kinds - {_WHOLE} - _WINDOWED or any(map(_RECURRENT.match, known)):
        return False
    # If the configuration does not list the layers, any of them may have the window.
    return kinds == {_WHOLE} or all(longest <= (known.get(name) or longest) for name in _WINDOWS)


def _additive_mask(segment: Tensor, dtype: torch.dtype) -> Tensor:
    """Segments (B, T) -> (B, 1, T, T): 0 where a token (row) sees another (column), otherwise the lowest number."""
    query, key = segment[:, :, None], segment[:, None, :]
    seen = ((key == _PROMPT) | (key == query)).tril()  # padding sees padding: a row of nothing would be NaN
    mask = torch.zeros(seen.shape, dtype=dtype, device=segment.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _row_by_row(
    model: nn.Module, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """The same with one row per option. Rows are padded on the right, where no token attends to the padding."""
    device = next(model.parameters()).device
    pairs = [(prompt, option) for prompt, few in zip(prompts, options, strict=True) for option in few]
    length = max(len(prompt) + len(option) for prompt, option in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    attended, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for r, (prompt, option) in enumerate(pairs):
        end = len(prompt) + len(option)
        ids[r, :end] = torch.tensor([*prompt, *option])
        attended[r, :end] = 1
        scored[r, len(prompt) : end] = True
    first = int(scored.any(0).nonzero()[0])  # the column before it predicts it
    kept = length - first + 1
    logits = _last_logits(model, kept, input_ids=ids.to(device), attention_mask=attended.to(device))
    log_p = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, first:, None].to(device))[..., 0]
    scores = iter((log_p * scored[:, first:].to(device)).sum(1).tolist())
    return [[next(scores) for _ in few] for few in options]


def _last_logits(model: nn.Module, count: int, **inputs: Tensor) -> Tensor:
    """Logits (B, count, vocabulary) of the last columns; the others are not computed if the model can skip them."""
    keep = {"logits_to_keep": count} if takes(model, "logits_to_keep") else {}
    logits: Tensor = model(**inputs, use_cache=False, **keep).logits
    return logits[:, -count:]


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
