"""Models of the kinds that PEFT's own contract tests adapt: plain PyTorch modules and small transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

import replora
from tests.adapters.tiny_models import hf_bart, hf_gpt2, hf_llama, tied_llama, timm_vit, tokens


class Zoo(NamedTuple):
    """A model, an input, and what of it is adapted."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    targets: tuple[str, ...]
    also_train: tuple[str, ...] = ()
    blocks: tuple[int, ...] | str = "all"


class Narrow(nn.Module):
    """Two linear layers with what usually stands between them."""

    def __init__(self, bias: bool = True, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16, bias=bias)
        self.middle = middle or nn.Sequential(nn.ReLU(), nn.Dropout(0.4))
        self.last = nn.Linear(16, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x))).log_softmax(-1)


class Stack(nn.Module):
    """Numbered blocks, the last of which calls a layer of the first once more."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(12, 12), "fc2": nn.Linear(12, 12)}) for _ in range(count)
        )
        self.blocks[-1]["fc2"] = self.blocks[0]["fc2"]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["fc2"](torch.tanh(block["fc1"](x)))
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gru(self.first(x)[:, None])[0][:, 0])


class Embedded(nn.Module):
    """An embedding, with the accessor that transformers has, and the transposed linear layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.embedding_extra = nn.Embedding(50, 6)  # its name begins like that of the one above
        self.mix = Conv1D(8, 6)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.mix(self.embedding(x) + self.embedding_extra(x))).mean(1))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


class Convolved(nn.Module):
    """A convolution in 1, 2 or 3 dimensions, grouped or not."""

    def __init__(self, dimensions: int, groups: int = 1, kernel: int = 3) -> None:
        super().__init__()
        self.shape = (4, *[kernel] * dimensions)
        self.widen = nn.Linear(12, 4 * kernel**dimensions)
        self.conv = getattr(nn, f"Conv{dimensions}d")(4, 8, kernel, groups=groups)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.conv(self.widen(x).view(-1, *self.shape))).flatten(1))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, 12)
        return self.last(self.attention(x, x, x)[0])


class OwnWeight(nn.Module):
    """Multiplies with a parameter of its own, without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class OwnLinear(nn.Linear):
    """A user's linear layer, which computes something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_own_weight() -> nn.Module:
    model = Narrow()
    model.first = OwnWeight()
    return model


def with_own_linear() -> nn.Module:
    model = Narrow()
    model.first = OwnLinear(12, 16)
    return model


def classifier() -> nn.Module:
    config = BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def rows(count: int = 8) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(2))


def ids() -> Tensor:
    return torch.arange(20).view(4, 5)


def picture() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


ZOO: dict[str, Zoo] = {
    "linear": Zoo(Narrow, rows, ("first",)),
    "two linear": Zoo(Narrow, rows, ("first", "last")),
    "linear without bias": Zoo(lambda: Narrow(bias=False), rows, ("first", "last")),
    "linear and head": Zoo(Narrow, rows, ("first",), ("last",)),
    "layer norm": Zoo(lambda: Narrow(middle=nn.LayerNorm(16)), rows, ("first",)),
    "batch norm": Zoo(lambda: Narrow(middle=nn.BatchNorm1d(16)), rows, ("first",)),
    "some blocks": Zoo(Stack, rows, ("fc1",), blocks=(0, 2)),
    "layer of two names": Zoo(Stack, rows, ("*.fc2",)),
    "subclass of linear": Zoo(with_own_linear, rows, ("first",)),
    "beside a GRU": Zoo(Recurrent, rows, ("first",)),
    "beside embeddings": Zoo(Embedded, ids, ("last",), ("embedding",)),
    "Conv1D of transformers": Zoo(Embedded, ids, ("mix", "last")),
    "beside a Conv2d": Zoo(lambda: Convolved(2), rows, ("widen",)),
    "nn.MultiheadAttention": Zoo(Attentive, rows, ("q", "v"), ("last",)),
    "ViT": Zoo(timm_vit, picture, ("q", "v"), ("head",)),
    "LLaMA": Zoo(hf_llama, tokens, ("q", "v")),
    "LLaMA with tied head": Zoo(tied_llama, tokens, ("q", "lm_head")),
    "GPT-2": Zoo(hf_gpt2, tokens, ("q", "v")),
    "BART": Zoo(hf_bart, tokens, ("q", "v")),
    "BERT classifier": Zoo(classifier, tokens, ("q", "v"), ("classifier",)),
}
# What injection refuses on every promise.
REFUSED: dict[str, Zoo] = {
    "head that is a target": Zoo(Narrow, rows, ("first", "last"), ("last",)),
    "GRU": Zoo(Recurrent, rows, ("gru",)),
    "nn.Embedding": Zoo(Embedded, ids, ("embedding",)),
    "nn.Conv1d": Zoo(lambda: Convolved(1), rows, ("conv",)),
    "nn.Conv2d": Zoo(lambda: Convolved(2), rows, ("conv",)),
    "nn.Conv2d with groups": Zoo(lambda: Convolved(2, groups=2), rows, ("conv",)),
    "nn.Conv2d of one pixel": Zoo(lambda: Convolved(2, kernel=1), rows, ("conv",)),
    "nn.Conv3d": Zoo(lambda: Convolved(3), rows, ("conv",)),
    "parameter of its own": Zoo(with_own_weight, rows, ("first",)),
}


def _peft(method: str) -> Callable[[Zoo], replora.AdapterConfig]:
    options: dict[str, Any] = {f"{method}_block_size": 2} if method in ("oft", "boft") else {}
    return lambda zoo: replora.PeftMethodConfig(
        method,
        rank=2,
        targets=zoo.targets,
        blocks=zoo.blocks,
        options=options,  # type: ignore[arg-type]
    )


METHODS: dict[str, Callable[[Zoo], replora.AdapterConfig]] = {
    "RepLoRA": lambda zoo: replora.RepLoRAConfig(rank=2, hidden=4, alpha=6.0, targets=zoo.targets, blocks=zoo.blocks),
    "LoRA": lambda zoo: replora.LoRAConfig(rank=2, alpha=6.0, targets=zoo.targets, blocks=zoo.blocks),
    **{f"peft's {method}": _peft(method) for method in ("lora", "dora", "ia3", "oft", "boft", "loha", "lokr", "hra")},
}
OURS = ("RepLoRA", "LoRA")
