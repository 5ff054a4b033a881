"""Speed and memory of adapted LLaMA shapes with random weights on one GPU: training, likelihood, generation.

    python scripts/gpu_llama.py --shape 7b --out gpu_llama_7b.json

Weights, token ids and options are random, so nothing is downloaded; the shapes, the recipe's adapter (rank 32 on q, k,
v, up and down), batch (4 texts of 256 tokens) and 4 beams are those of `configs/commonsense.yaml`. Each row is one
method with or without gradient checkpointing: tokens per second of forward, backward and optimizer step, peak memory,
and questions per second of both ways to answer. `--shape tiny --device cpu` tests the script on any machine.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import replora
from replora.backbones.language import LLAMA_SHAPES, as_backbone, checkpoint_gradients
from replora.evaluation import generate, option_log_likelihoods
from replora.results import environment_info, write_json

TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES = LLAMA_SHAPES | {"tiny": TINY}
VOCABULARY = 32_000
PROMPT, OPTIONS, OPTION = 120, 4, 5  # tokens per question, options per question, tokens per option
METHODS = {"lora": "none", "replora": "mlp"}


def build(shape: str, factors: str, device: torch.device, checkpointing: bool) -> torch.nn.Module:
    """Build a LLaMA of this shape in bfloat16 with the recipe's adapter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **SHAPES[shape]))
        finally:
            torch.set_default_dtype(torch.float32)
    built = as_backbone(model, shape, "random")
    config = replora.RepLoRAConfig(
        rank=32, alpha=64, dropout=0.05, factors=factors, targets=["q", "k", "v", "up", "down"]
    )
    replora.inject(built.model, config)
    if checkpointing:
        checkpoint_gradients(built.model)
    return built.model


def training(model: torch.nn.Module, device: torch.device, batch: int, length: int, steps: int) -> dict[str, float]:
    """Measure seconds per step and tokens per second, after two warm-up steps."""
    optimizer = torch.optim.AdamW(replora.parameter_groups(model), lr=3e-4, weight_decay=0.0)
    ids = torch.randint(0, VOCABULARY, (batch, length), device=device)
    model.train()
    times = []
    for _ in range(steps + 2):
        synchronize(device)
        started = time.perf_counter()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        times.append(time.perf_counter() - started)
    median = sorted(times[2:])[steps // 2]
    return {"seconds_per_step": round(median, 4), "tokens_per_second": round(batch * length / median, 1)}


def answering(model: torch.nn.Module, device: torch.device, batch: int) -> dict[str, float]:
    """Measure questions per second by likelihood, and by generation with 4 beams of 32 tokens each."""
    model.eval()
    prompts = torch.randint(0, VOCABULARY, (batch, PROMPT)).tolist()
    options = torch.randint(0, VOCABULARY, (batch, OPTIONS, OPTION)).tolist()
    found = {}
    for name, ask in {
        "likelihood": lambda: option_log_likelihoods(model, prompts, options),
        "generate": lambda: generate(model, prompts, end_ids=[], pad_id=0, num_beams=4, max_new_tokens=32),
    }.items():
        ask()
        synchronize(device)
        started = time.perf_counter()
        ask()
        synchronize(device)
        found[f"{name}_items_per_second"] = round(batch / (time.perf_counter() - started), 2)
    return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(args: argparse.Namespace, method: str, checkpointing: bool) -> dict[str, Any]:
    """Measure one row."""
    device = torch.device(args.device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    model = build(args.shape, METHODS[method], device, checkpointing)
    row: dict[str, Any] = {"method": method, "gradient_checkpointing": checkpointing}
    row["parameters"] = vars(replora.parameter_counts(model))
    row |= training(model, device, args.batch_size, args.length, args.steps)
    if device.type == "cuda":
        row["training_peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return row | answering(model, device, args.eval_batch_size)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch_size", type=int, default=4, help="texts per training step")
    parser.add_argument("--length", type=int, default=256, help="tokens per text")
    parser.add_argument("--eval_batch_size", type=int, default=16, help="questions per batch in evaluation")
    parser.add_argument("--steps", type=int, default=10, help="number of timed steps")
    parser.add_argument("--out", type=Path, default=Path("gpu_llama.json"))
    args = parser.parse_args(arguments)
    rows = []
    for method in METHODS:
        for checkpointing in (False, True):
            rows.append(measure(args, method, checkpointing))
            print(rows[-1], flush=True)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    options = {key: value for key, value in vars(args).items() if key != "out"}
    write_json(args.out, {**options, "device_name": device, "rows": rows, **environment_info()})


if __name__ == "__main__":
    main()
