"""How much time and memory does a training step take, compared with the floor and other methods?

    python benchmarks/training_step.py                                        ViT-B/16, batch 16, this machine's CPU
    python benchmarks/training_step.py --model swin_tiny llama_stack --batch 4
    python benchmarks/training_step.py --model swin3d_tiny --batch 1          Video Swin, clips of 8 frames
    python benchmarks/training_step.py --model swin_t vit_b_16 beit_base --batch 4    attentions that read their weights
    python benchmarks/training_step.py --device cuda --precision bf16 --batch 64
    python benchmarks/training_step.py --device cuda --precision bf16 --model llama_7b --batch 4 --no-full

The floor is the same model with forward and backward passes through all activations and only a head and one early
vector to train. Weights are random, because speed does not depend on them.
"""

from __future__ import annotations

from typing import Any

import measure
import torch
from contenders import METHODS, ON_WEIGHTS, TITLES, WORKLOADS, TrainingStep, batch_for, build, contenders

from replora.backbones.language import checkpoint_gradients as checkpoint_language
from replora.backbones.vision import checkpoint_gradients as checkpoint_vision


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=15)
    measure.device_options(parser)
    parser.add_argument("--model", nargs="+", default=["vit_base"], choices=list(WORKLOADS), help="models to adapt")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="methods to compare")
    parser.add_argument("--no-full", action="store_true", help="exclude full fine-tuning, which needs the most memory")
    parser.add_argument("--batch", type=int, default=16, help="images or texts per step")
    parser.add_argument("--depth", type=int, help="number of blocks of a ViT or Llama, instead of its own")
    parser.add_argument("--rank", type=int, default=8, help="rank of every low-rank method")
    parser.add_argument("--targets", nargs="+", default=["q", "v"], help="targets of every low-rank method")
    parser.add_argument("--compile", action="store_true", help="compile the models with torch.compile")
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="recompute activations in the backward pass"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.rounds, options.targets = ["tiny"], 2, 2, ["q", "v"]
    torch.set_num_threads(options.threads)
    for name in options.model:
        methods = [m for m in options.methods if not (m == "full" and options.no_full)]
        methods = [m for m in methods if WORKLOADS[name].called or m in ON_WEIGHTS]
        results = compare(name, ["floor", *(m for m in methods if m != "floor")], options)
        show(name, results, options)
        settings = measure.settings(options, "model", "methods")
        file_name = f"training_step-{name}-batch{options.batch}-{options.device}-{options.precision}"
        file_name += "-compiled" * options.compile + "-checkpointing" * options.gradient_checkpointing
        file = measure.write(options.out, file_name, {"model": name, **settings}, results, options.device)
        print(file)


def compare(name: str, methods: list[str], options: Any) -> dict[str, Any]:
    """Measure time and memory of each method."""
    workload = WORKLOADS[name]
    model = build(workload, options.depth, options.device, options.precision)
    inputs, labels = batch_for(workload, options.batch, options.device, options.precision)
    models = contenders(model, workload, methods, options.rank, tuple(options.targets))
    for adapted in models.values():
        if options.gradient_checkpointing:
            vision = hasattr(adapted, "set_grad_checkpointing")
            (checkpoint_vision if vision else checkpoint_language)(adapted)
        if options.compile:  # inductor takes minutes on a CPU
            adapted.compile(backend="eager" if options.quick else "inductor")
    steps = {name: TrainingStep(adapted, inputs, labels, options.precision) for name, adapted in models.items()}
    results = measure.summarize(measure.interleaved(steps, options.rounds, options.device), "floor")
    for method, step in steps.items():
        held = measure.bytes_held(step.tensors())
        peak = held + measure.peak_bytes(step, options.device)
        results[method] |= {"trained": step.trained(), "held_bytes": held, "peak_bytes": peak}
    if "peft_lora" in results:
        for found in results.values():
            found["ratio_to_peft_lora"] = found["ratio"] / results["peft_lora"]["ratio"]
    return results


def show(name: str, results: dict[str, Any], options: Any) -> None:
    """Print the results as a table."""
    floor = results["floor"]
    measure.show(
        f"Training step of {name}, batch {options.batch}, {options.precision} on {options.device}",
        ["method", "seconds", "x floor (quartiles)", "x LoRA (PEFT)", "peak MiB", "x floor"],
        [
            [
                TITLES[method],
                f"{found['seconds']:.4f}",
                measure.ratio_text(found),
                f"{found['ratio_to_peft_lora']:.3f}" if "ratio_to_peft_lora" in found else "",
                f"{found['peak_bytes'] / 2**20:,.0f}",
                f"{found['peak_bytes'] / floor['peak_bytes']:.3f}",
            ]
            for method, found in results.items()
        ],
    )


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
