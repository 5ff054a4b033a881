"""Models with random weights that the benchmarks measure, and methods that they compare on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import replora
from replora.adapters.low_rank.factors import build_factors
from replora.adapters.targets import find_targets

CLASSES = 100


@dataclass(frozen=True)
class Workload:
    """A model and a batch for it.

    Attributes:
        build: Function that builds the model with a number of blocks, or with its own number for None.
        batch: Function that makes the arguments of a forward pass and the labels for a number of samples.
        head: Names of the modules that train beside the adapter.
        called: Whether the model calls its projections. Where it reads their weights, layers in their place do nothing.
    """

    build: Callable[[int | None], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    head: tuple[str, ...]
    called: bool = True


def images(size: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return `samples` random images of `size` x `size` pixels, with labels."""

    def make(samples: int) -> tuple[Tensor, Tensor]:
        return torch.randn(samples, 3, size, size), torch.randint(CLASSES, (samples,))

    return make


def tokens(length: int, vocabulary: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return `samples` random texts of `length` tokens; each token is a target."""

    def make(samples: int) -> tuple[Tensor, Tensor]:
        ids = torch.randint(vocabulary, (samples, length))
        return ids, ids

    return make


def timm_model(name: str, size: int = 224, called: bool = True, **options: Any) -> Workload:
    def build(depth: int | None) -> nn.Module:
        import timm

        blocks = {} if depth is None else {"depth": depth}
        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **(options | blocks))

    return Workload(build, images(size), ("head",), called)


def torchvision_model(name: str, head: str) -> Workload:
    """A model whose attention reads its weights."""

    def build(depth: int | None) -> nn.Module:  # noqa: ARG001
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES)
        for module in model.modules():
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0  # all methods compute the same
        return model

    return Workload(build, images(224), (head,), called=False)


def swin3d(name: str, frames: int, size: int = 224) -> Workload:
    """Video Swin from this project's builder: its projections are called, so PEFT's layers act on them."""

    def build(depth: int | None) -> nn.Module:  # noqa: ARG001
        from replora.backbones.video import build_swin3d

        return build_swin3d(name, CLASSES)

    def clips(samples: int) -> tuple[Tensor, Tensor]:
        return torch.randn(samples, 3, frames, size, size), torch.randint(CLASSES, (samples,))

    return Workload(build, clips, ("head",))


def llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, length: int) -> Workload:
    def build(depth: int | None) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers if depth is None else depth,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=vocabulary,
            use_cache=False,
        )
        return LlamaForCausalLM(config)

    return Workload(build, tokens(length, vocabulary), ())


WORKLOADS = {
    "vit_small": timm_model("vit_small_patch16_224"),
    "vit_base": timm_model("vit_base_patch16_224"),
    "vit_large": timm_model("vit_large_patch16_224"),
    "swin_tiny": timm_model("swin_tiny_patch4_window7_224"),
    "swin_base": timm_model("swin_base_patch4_window7_224"),
    "swin_t": torchvision_model("swin_t", "head"),
    "vit_b_16": torchvision_model("vit_b_16", "heads"),  # nn.MultiheadAttention
    "swinv2_tiny": timm_model("swinv2_tiny_window8_256", 256, called=False),
    "beit_base": timm_model("beit_base_patch16_224", called=False),
    "swin3d_tiny": swin3d("swin3d_t", 8),
    "swin3d_base": swin3d("swin3d_b", 8),
    "llama_stack": llama(1024, 2752, 4, 16, vocabulary=4096, length=256),  # blocks of a small Llama, for a CPU
    "llama_7b": llama(4096, 11008, 32, 32, vocabulary=32000, length=512),
    "tiny": timm_model("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, depth=2),  # for --quick
}


# --- methods


class NaiveLinear(nn.Module):
    """A naive RepLoRA: every call generates A and B, and each target adds two products."""

    def __init__(self, linear: nn.Linear, rows: list[tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.linear, self.rows = linear, rows
        shapes = [(linear.in_features, last - first) for first, last in rows]
        self.factors = build_factors(replora.RepLoRAConfig(rank=rank), 1, shapes).to(linear.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        for (first, last), (A, B) in zip(self.rows, self.factors(), strict=True):
            update = F.linear(F.linear(x, A[0].to(x.dtype)), B[0].to(x.dtype))
            y = y + F.pad(update, (first, self.linear.out_features - last))
        return y


def floor(model: nn.Module, workload: Workload, rank: int, targets: tuple[str, ...]) -> nn.Module:  # noqa: ARG001
    """Train only the head and one early vector: the gradient passes through all activations, with little other work."""
    model.requires_grad_(False)
    for name in workload.head:
        model.get_submodule(name).requires_grad_()
    early = next(p for p in model.parameters() if p.ndim == 1)
    early.data = early.data.clone()
    early.requires_grad_()
    return model


def naive_replora(model: nn.Module, workload: Workload, rank: int, targets: tuple[str, ...]) -> nn.Module:
    heads = [model.get_submodule(name) for name in workload.head]
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_()
    rows: dict[str, list[tuple[int, int]]] = {}
    for target in find_targets(model, targets, "all", skip=heads):
        rows.setdefault(target.module, []).append(target.rows or (0, target.shape[1]))
    for name, ranges in rows.items():
        model.set_submodule(name, NaiveLinear(model.get_submodule(name), ranges, rank))
    return model


def injected(config: Callable[..., replora.AdapterConfig]) -> Callable[..., nn.Module]:
    def make(model: nn.Module, workload: Workload, rank: int, targets: tuple[str, ...]) -> nn.Module:
        return replora.inject(model, config(rank=rank, targets=targets), also_train=workload.head, check=False)

    return make


def replora_over_peft(model: nn.Module, workload: Workload, rank: int, targets: tuple[str, ...]) -> nn.Module:
    """`replora.reparameterize` on the LoRA layers that "peft_lora" has."""
    import peft

    heads = [model.get_submodule(name) for name in workload.head]
    modules = {target.module for target in find_targets(model, targets, "all", skip=heads)}
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, target_modules=sorted(modules)), model)
    for head in heads:
        head.requires_grad_()
    return replora.reparameterize(model)


METHODS: dict[str, Callable[..., nn.Module]] = {
    "floor": floor,
    "replora": injected(replora.RepLoRAConfig),
    "replora_wide": injected(lambda **options: replora.RepLoRAConfig(hidden=64, **options)),
    "lora": injected(lambda **options: replora.RepLoRAConfig(factors="none", **options)),
    "peft_lora": injected(lambda **options: replora.PeftMethodConfig("lora", **options)),
    "replora_over_peft": replora_over_peft,
    "peft_dora": injected(lambda **options: replora.PeftMethodConfig("dora", **options)),
    "naive_replora": naive_replora,
    "full": lambda model, *_: model.requires_grad_(),
}
ON_WEIGHTS = ("floor", "replora", "replora_wide", "lora", "full")  # those that adapt a model that reads its weights
TITLES = {
    "floor": "floor: frozen backbone, gradient through all of it",
    "replora": "RepLoRA",
    "replora_wide": "RepLoRA, hidden: 64",
    "lora": "LoRA (ours)",
    "peft_lora": "LoRA (PEFT, on qkv)",
    "replora_over_peft": "RepLoRA over PEFT, on qkv",
    "peft_dora": "DoRA (PEFT, on qkv)",
    "naive_replora": "RepLoRA, naive",
    "full": "full fine-tuning",
}


def contenders(
    model: nn.Module, workload: Workload, methods: list[str], rank: int = 8, targets: tuple[str, ...] = ("q", "v")
) -> dict[str, nn.Module]:
    """Return a copy of `model` per method. They share their frozen weights, so many large ones fit into memory."""
    return {
        name: METHODS[name](
            copy.deepcopy(model) if name == "full" else sharing_copy(model, workload.head), workload, rank, targets
        )
        for name in methods
    }


def sharing_copy(model: nn.Module, head: tuple[str, ...]) -> nn.Module:
    """Return a copy whose parameters are views of those of `model`, except in its head."""
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    copied = copy.deepcopy(model, shared)
    for name in head:
        for parameter in copied.get_submodule(name).parameters():
            parameter.data = parameter.data.clone()
    return copied


def build(workload: Workload, depth: int | None, device: str, precision: str) -> nn.Module:
    """Build the model on its device, in its precision, with the same random weights every time."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # 7 billion parameters in float32 would not fit beside their copy
    try:
        with torch.device(device):
            model = workload.build(depth)
    finally:
        torch.set_default_dtype(before)
    return model.to(device, dtype)


def batch_for(workload: Workload, samples: int, device: str, precision: str) -> tuple[Tensor, Tensor]:
    """Return inputs and labels on the device."""
    torch.manual_seed(1)
    inputs, labels = workload.batch(samples)
    if precision == "bf16" and inputs.is_floating_point():
        inputs = inputs.bfloat16()
    return inputs.to(device), labels.to(device)


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor, precision: str) -> Tensor:
    """Return the cross-entropy of classes or of tokens."""
    mixed = precision == "bf16-mixed"  # the meta device has no autocast
    with torch.autocast(inputs.device.type, torch.bfloat16) if mixed else nullcontext():
        output = model(inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


class TrainingStep:
    """Forward pass, backward pass and optimizer step of one model on one batch.

    Args:
        model: Model whose parameters that require gradients are trained by AdamW.
        inputs: Arguments of a forward pass.
        labels: Labels of the outputs.
        precision: `bf16-mixed` runs under autocast.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, precision: str) -> None:
        self.model, self.inputs, self.labels, self.precision = model.train(), inputs, labels, precision
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def __call__(self) -> None:
        loss_of(self.model, self.inputs, self.labels, self.precision).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def tensors(self) -> list[Tensor]:
        """Bytes held between two steps: parameters, buffers, and the optimizer's moments."""
        moments = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *moments]

    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)
