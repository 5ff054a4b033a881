"""Text generation with a language model: deterministic beam search for a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.inference_mode()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    pad_id: int,
    num_beams: int = 1,
    max_new_tokens: int = 32,
    in_step: bool = False,
) -> list[list[int]]:
    """Generate the tokens that follow each of B prompts, without sampling.

    Prompts are padded on the left and the padding is masked, so an answer does not depend on the batch of its prompt
    (except for rounding). All options that `generate` of transformers would take from the model's generation
    configuration are set here.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        prompts: Token ids of each prompt, at least one.
        end_ids: Token ids that end a text.
        pad_id: Token id of the padding.
        num_beams: Number of beams; 1 is greedy search. The length penalty is 1, as in LLM-Adapters.
        max_new_tokens: Largest number of new tokens (>= 1).
        in_step: Whether all processes must call the model equally often, as when its weights are sharded.

    Returns:
        For each prompt its new tokens, without end and padding tokens.
    """
    device = next(model.parameters()).device
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.long)
    attended = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        attended[row, length - len(prompt) :] = 1
    written = model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=attended.to(device),
        do_sample=False,
        num_beams=num_beams,
        length_penalty=1.0,
        early_stopping=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
        synced_gpus=in_step,
    )
    return [_until_end(row, {*end_ids}) for row in written[:, length:].tolist()]


def _until_end(tokens: list[int], end_ids: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in end_ids), len(tokens))
    return tokens[:end]
