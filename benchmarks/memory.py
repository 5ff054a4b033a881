"""How much memory do training, evaluation and loader processes take, at the peak and between steps?

    python benchmarks/memory.py

A Llama of 7 billion parameters is built on the meta device, whose tensors have shapes and no values, with frozen
weights in 16 bits and in 4 bits (NF4, as bitsandbytes stores them). Training steps run on it, and every tensor that
they create is counted until it is freed. The same count on this machine's CPU gives the figures of models that fit
here. The memory of loader processes is that which the system reports.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measure
import peft
import torch
from contenders import (
    METHODS,
    WORKLOADS,
    TrainingStep,
    Workload,
    batch_for,
    build,
    contenders,
    injected,
    llama,
    loss_of,
)
from loading import write_images
from tables import memory_tables
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import replora
from lightning_modules.callbacks.merged_evaluation import MergedEvaluation
from replora.adapters.container import parameter_counts
from replora.adapters.targets import find_targets

TARGETS = {"q, v": ("q", "v"), "all seven": ("q", "k", "v", "out", "gate", "up", "down")}
RANKS = (8, 32)
PARTS = ("weights", "adapters", "steps", "evaluation", "loaders")
TINY = llama(64, 128, 2, 4, vocabulary=256, length=16)  # for --quick
MEASURED = {"vit_small": 16, "llama_stack": 2}  # models that are trained and evaluated here, and their batches


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--images", type=int, default=1000, help="training images that the loader processes read")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4], help="numbers of loader processes")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.workers = 40, [0, 1]
    torch.set_num_threads(options.threads)
    large, ranks = (TINY, RANKS[:1]) if options.quick else (WORKLOADS["llama_7b"], RANKS)
    models = {"tiny": 2} if options.quick else MEASURED
    parts: dict[str, Callable[[], Any]] = {
        "weights": lambda: weights(large),
        "adapters": lambda: adapters(large, ranks),
        "steps": lambda: {name: steps(WORKLOADS[name], batch) for name, batch in models.items()},
        "evaluation": lambda: {
            f"{name}, {precision}": evaluation(WORKLOADS[name], batch, precision)
            for name, batch in models.items()
            for precision in ("fp32", "bf16")
        },
        "loaders": lambda: loaders(options.images, options.workers),
    }
    results = {part: parts[part]() for part in options.parts}
    show(results)
    settings = measure.settings(options)
    name = "memory" if options.parts == list(PARTS) else f"memory-{'-'.join(options.parts)}"
    print(measure.write(options.out, name, settings, results))


def show(results: dict[str, Any]) -> None:
    """Print the tables of the page."""
    for title, head, rows in memory_tables(results):
        measure.show(title, head, rows)


class Allocations(TorchDispatchMode):
    """Inside, the bytes of all tensors that are alive, on any device.

    What an operator allocates and frees within itself is not seen.

    Attributes:
        held: Bytes of the tensors that are given, which exist when the block begins.
        level, peak: Bytes at the moment, and the most so far.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.level = self.peak = 0
        for tensor in tensors:
            self._add(tensor)
        self.held = self.level

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.level += storage.nbytes()
            self.peak = max(self.peak, self.level)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.level -= self._sizes.pop(key)

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for found in tree_leaves(output):
            if isinstance(found, Tensor):
                self._add(found)
        return output


# --- a model that does not fit here


def fused_attention(_module: nn.Module, q: Tensor, k: Tensor, v: Tensor, _mask: Any, **_: Any) -> tuple[Tensor, None]:
    """Attention that keeps no probabilities, as a GPU's does; on the meta device PyTorch takes the plain one."""
    output = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)[0]
    return output.transpose(1, 2), None


def on_meta(workload: Workload, kind: str) -> nn.Module:
    """The model on the meta device with its weights in `fp32`, `bf16`, `nf4` or `nf4, double quantization`."""
    from transformers import AttentionInterface

    AttentionInterface.register("fused", fused_attention)
    model: Any = build(workload, None, "meta", "fp32" if kind == "fp32" else "bf16")
    model.set_attn_implementation("fused")
    if kind.startswith("nf4"):
        quantize(model, double=kind != "nf4")
    return model  # type: ignore[no-any-return]


def quantize(model: Any, double: bool) -> None:
    """Store the linear layers, except the output layer, as transformers does with `load_in_4bit`.

    Args:
        model: Model of transformers, on any device.
        double: Whether the scales of the blocks are quantized as well (`bnb_4bit_use_double_quant`).
    """
    import bitsandbytes

    # bitsandbytes keeps the values of a code on the device that first needs it, and those on meta are lost.
    bitsandbytes.functional.quantize_blockwise(torch.zeros(1))
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, nn.Linear) or linear is model.get_output_embeddings():
            continue
        packed, state = bitsandbytes.functional.quantize_4bit(
            linear.weight.detach(), quant_type="nf4", compress_statistics=double
        )
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=linear.weight.dtype, device="meta"
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            packed, requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True
        )
        model.set_submodule(name, layer)
    model.is_loaded_in_4bit = True  # for peft


def frozen_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers that do not train, and the scales of quantized weights."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.requires_grad:
            yield tensor
            yield from _tensors_of(getattr(tensor, "quant_state", None))


def _tensors_of(state: Any) -> Iterator[Tensor]:
    for value in () if state is None else vars(state).values():
        if isinstance(value, Tensor):
            yield value
        elif type(value) is type(state):  # of the scales, with double quantization
            yield from _tensors_of(value)


def kinds() -> list[str]:
    """The kinds of weights in which a large model is trained; 4 bits need bitsandbytes."""
    return ["bf16", *(["nf4", "nf4, double quantization"] if importlib.util.find_spec("bitsandbytes") else [])]


def weights(workload: Workload) -> dict[str, Any]:
    """Bytes of the frozen weights, and in float32 of the copy that a merged evaluation makes."""
    results: dict[str, Any] = {}
    for kind in ("fp32", *kinds()):
        results[kind] = {
            "frozen_bytes": measure.bytes_held(frozen_tensors(on_meta(workload, kind).requires_grad_(False)))
        }
        if kind == "fp32":
            models = {name: METHODS["lora"](on_meta(workload, kind), workload, 8, t) for name, t in TARGETS.items()}
            results[kind]["copy_bytes"] = {
                name: measure.bytes_held(update.base for update in model.replora.updates)
                for name, model in models.items()
            }
    return results


def of_peft(model: nn.Module, _workload: Workload, rank: int, targets: tuple[str, ...], **options: Any) -> nn.Module:
    """PEFT's own model, as its users make it."""
    modules = [target.module for target in find_targets(model, targets, "all")]
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, target_modules=modules), **options)  # type: ignore[arg-type]


ADAPTERS: dict[str, Callable[..., nn.Module]] = {
    "replora": METHODS["replora"],
    "replora_tied": injected(partial(replora.RepLoRAConfig, sharing="tied")),
    "lora": METHODS["lora"],
    "peft_lora": of_peft,
    "peft_lora_bf16": partial(of_peft, autocast_adapter_dtype=False),  # in the dtype of the frozen weights
}


def adapters(workload: Workload, ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Bytes of each adapter and of a training step of one text with it."""
    results = []
    for targets, names in TARGETS.items():
        for rank in ranks:
            for method, make in ADAPTERS.items():
                found: dict[str, Any] = {"targets": targets, "rank": rank, "method": method, "peak_bytes": {}}
                for kind in kinds()[:2]:
                    model = make(on_meta(workload, kind), workload, rank, names)
                    counted = counted_step(TrainingStep(model, *batch_for(workload, 1, "meta", "bf16"), "bf16"))
                    found["peak_bytes"][kind] = counted.pop("peak_bytes")
                    found |= counted | {"file_bytes": file_bytes(model)}
                results.append(found)
    return results


def counted_step(step: TrainingStep) -> dict[str, int]:
    """Bytes of what a method adds to the frozen weights, of what a step leaves, and of all tensors at its peak."""
    trained = [p for p in step.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()  # it makes its moments
    step.optimizer.zero_grad()
    parameters = measure.bytes_held([*step.model.parameters(), *step.model.buffers()])
    with Allocations([*step.tensors(), *frozen_tensors(step.model)]) as counted:
        loss_of(step.model, step.inputs, step.labels, step.precision).backward()
        gradients = measure.bytes_held(p.grad for p in trained if p.grad is not None)
        step.optimizer.step()
        step.optimizer.zero_grad()
    return {
        "trained_bytes": measure.bytes_held(trained),
        "gradient_bytes": gradients,
        "optimizer_bytes": measure.bytes_held(step.tensors()) - parameters,
        "held_bytes": counted.held,
        "kept_bytes": counted.level - counted.held,
        "peak_bytes": counted.peak,
    }


def file_bytes(model: nn.Module) -> int:
    """Bytes of the tensors in an adapter file: those of A and B in float32, or what PEFT writes."""
    if isinstance(model, peft.PeftModel):
        return measure.bytes_held(peft.get_peft_model_state_dict(model).values())
    return 4 * parameter_counts(model).adapter_deployed


# --- models that are trained and evaluated here


def steps(workload: Workload, batch: int) -> dict[str, Any]:
    """Bytes held between two training steps, and at the peak of one."""
    model = build(workload, None, "cpu", "fp32")
    inputs = batch_for(workload, batch, "cpu", "fp32")
    results = {}
    for method, adapted in contenders(model, workload, ["floor", "replora", "lora", "peft_lora"]).items():
        results[method] = counted_step(TrainingStep(adapted, *inputs, "fp32"))
    return results


def evaluation(workload: Workload, batch: int, precision: str) -> dict[str, Any]:
    """Bytes of an evaluation with merged weights and without, and whether it leaves the frozen weights as they were."""
    inputs, _ = batch_for(workload, batch, "cpu", precision)
    results: dict[str, Any] = {}
    for way in ("replora", "replora, in the Trainer", "peft_lora", "peft_lora, merge_adapter"):
        method = ADAPTERS[way.split(",")[0]]
        model: Any = method(build(workload, None, "cpu", precision), workload, 8, ("q", "v")).eval()
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            nn.init.normal_(parameter, std=0.02)  # an update that is not 0
        before = [tensor.clone() for tensor in frozen_tensors(model)]
        merging = merging_of(model) if "," in way else (lambda: None, lambda: None)
        with torch.inference_mode(), Allocations([*trained, *frozen_tensors(model)]) as counted:
            with torch.inference_mode(False), torch.no_grad():
                merging[0]()
            copied = counted.level - counted.held
            model(inputs)
            with torch.inference_mode(False), torch.no_grad():
                merging[1]()
        exact = all(torch.equal(*pair) for pair in zip(before, frozen_tensors(model), strict=True))
        results[way] = {"held_bytes": counted.held, "copy_bytes": copied, "peak_bytes": counted.peak, "restored": exact}
    return results


def merging_of(model: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What may merge before an evaluation and unmerges afterwards: the Trainer's callback, or PEFT's own methods."""
    if isinstance(model, peft.PeftModel):
        return model.merge_adapter, model.unmerge_adapter
    callback, trainer, module = MergedEvaluation(), SimpleNamespace(callbacks=[]), SimpleNamespace(model=model)
    return partial(callback.on_validation_start, trainer, module), callback.on_validation_end  # type: ignore[arg-type]


# --- loader processes


def loaders(images: int, workers: list[int]) -> list[dict[str, Any]]:
    """Memory of the training process and its loader processes, with images in memory and without."""
    if not Path("/proc/self/smaps_rollup").is_file():
        return []
    some = str(next(count for count in workers if count))
    runs = [["--workers", str(count)] for count in workers]
    runs += [["--workers", some, "--start", "spawn"], ["--workers", some, "--no-cache"]]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), images)
        for run in runs:
            command = [sys.executable, str(Path(__file__).with_name("loader_processes.py")), folder, *run]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=measure.environment())
            results.append({"options": " ".join(run), **json.loads(output.stdout)})
    return results


if __name__ == "__main__":
    main()
