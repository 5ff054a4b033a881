"""How fast is evaluation, merged and unmerged, compared with the backbone without an adapter?

python benchmarks/evaluation.py                                          ViT-B/16, batch 16, this machine's CPU
python benchmarks/evaluation.py --device cuda --precision bf16 --batch 256
"""

from __future__ import annotations

import copy

import measure
import torch
from contenders import WORKLOADS, batch_for, build, contenders

import replora

TITLES = {
    "base": "backbone without adapter",
    "merged": "RepLoRA, merged",
    "unmerged": "RepLoRA, unmerged",
    "peft_lora": "LoRA (PEFT), unmerged",
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=25)
    measure.device_options(parser)
    parser.add_argument("--model", nargs="+", default=["vit_base"], choices=list(WORKLOADS), help="models to adapt")
    parser.add_argument("--batch", type=int, default=16, help="images or texts per batch")
    parser.add_argument("--depth", type=int, help="number of blocks of a ViT or Llama, instead of its own")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.batch, options.rounds = ["tiny"], 2, 2
    torch.set_num_threads(options.threads)
    for name in options.model:
        workload = WORKLOADS[name]
        model = build(workload, options.depth, options.device, options.precision)
        inputs, _ = batch_for(workload, options.batch, options.device, options.precision)
        models = {"base": model}
        models |= {"unmerged": contenders(model, workload, ["replora"])["replora"]}
        models |= {"merged": replora.merge(copy.deepcopy(models["unmerged"]))}
        models |= contenders(model, workload, ["peft_lora"])
        for evaluated in models.values():
            evaluated.eval()

        def forward(evaluated: torch.nn.Module, inputs: torch.Tensor = inputs) -> None:
            mixed = options.precision == "bf16-mixed"
            with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16, enabled=mixed):
                evaluated(inputs)

        steps = {kind: lambda m=models[kind]: forward(m) for kind in TITLES}
        results = measure.summarize(measure.interleaved(steps, options.rounds, options.device), "base")
        measure.show(
            f"Evaluation of {name}, batch {options.batch}, {options.precision} on {options.device}",
            ["model", "seconds", "x backbone (quartiles)"],
            [[TITLES[k], f"{found['seconds']:.4f}", measure.ratio_text(found)] for k, found in results.items()],
        )
        settings = measure.settings(options, "model")
        file_name = f"evaluation-{name}-batch{options.batch}-{options.device}-{options.precision}"
        print(measure.write(options.out, file_name, {"model": name, **settings}, results, options.device))


if __name__ == "__main__":
    measure.with_steady_malloc()
    main()
