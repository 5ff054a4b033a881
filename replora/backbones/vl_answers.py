"""The answers of a VL-BART, generated as VL-Adapter's (github.com/ylsung/VL_adapter)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from replora.datasets.vision_language.tasks import VLBatch, VLTask, vl_task

MAX_TOKENS = 20  # length of a generated answer in VL-Adapter, `<s>` and `</s>` included


@torch.no_grad()
def answer(model: Any, tokenizer: Any, batch: VLBatch, num_beams: int | None = None) -> list[str]:
    """The answer to each sample of a batch.

    Args:
        model: A `VLBart` in evaluation mode.
        tokenizer: Its tokenizer.
        batch: Samples of one task, on the model's device.
        num_beams: Number of beams (>= 1). Default: that of the task.
    """
    task = vl_task(batch["task"])
    mask = batch["attention_mask"]
    encoded = model.get_encoder()(batch["input_ids"], mask, features=batch["features"])
    mask = F.pad(mask, (0, encoded[0].shape[1] - mask.shape[1]), value=1)  # the visual tokens
    if task.kind == "nlvr2":
        return _judge(model, tokenizer, encoded, mask)
    written = model.generate(
        encoder_outputs=encoded, attention_mask=mask, **generation_options(model.config, task, num_beams)
    )
    return cast("list[str]", tokenizer.batch_decode(written, skip_special_tokens=True))


def generation_options(config: Any, task: VLTask, num_beams: int | None = None) -> dict[str, Any]:
    """The generation settings of VL-Adapter and of BART's own files, all of them explicit."""
    beams = num_beams or task.beams
    return {
        "do_sample": False,
        "num_beams": beams,
        "early_stopping": beams > 1,
        "length_penalty": 1.0,
        "max_length": MAX_TOKENS,
        "no_repeat_ngram_size": 3,
        "forced_bos_token_id": config.bos_token_id,
        "forced_eos_token_id": config.eos_token_id,
        "use_cache": True,
    }


def _judge(model: Any, tokenizer: Any, encoded: Any, mask: Tensor) -> list[str]:
    """`true` or `false`, whichever is more likely right after `<s>`."""
    config = model.config
    start = torch.tensor([[config.decoder_start_token_id, config.bos_token_id]], device=mask.device)
    output = model(
        encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=start.expand(len(mask), -1), use_cache=False
    )
    verdicts = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("false", "true")]
    false, true = output.logits[:, 1, verdicts].unbind(1)
    return ["true" if verdict else "false" for verdict in (true > false).tolist()]
