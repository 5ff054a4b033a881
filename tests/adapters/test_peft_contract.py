"""Every promise on every model with every method: kept, refused for a stated reason, or not applicable.

The table of docs/peft_contract.md is made from what stands here: `python -m tests.adapters.test_peft_contract`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedModel

import replora
from tests.adapters.peft_promises import PROMISES, Case
from tests.adapters.peft_zoo import METHODS, OURS, REFUSED, ZOO

PAGE = Path(__file__).parents[2] / "docs" / "peft_contract.md"
OF_PEFT = tuple(method for method in METHODS if method not in OURS)
EVERYWHERE = (*OURS, "peft's dora")  # the other methods of peft share their code with dora
SAMPLE = ("two linear", "linear and head", "layer of two names", "subclass of linear", "LLaMA", "BERT classifier")
MERGING = ("merges", "merges_for_good", "merges_in_half_precision", "refuses_to_switch_off_a_merged_one")


class Refusal(NamedTuple):
    """What is refused, the reason, and a part of the error that says so. An empty tuple means all."""

    what: str
    reason: str
    says: str
    promises: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def covers(self, promise: str, model: str, method: str) -> bool:
        pairs = ((promise, self.promises), (model, self.models), (method, self.methods))
        return all(not allowed or value in allowed for value, allowed in pairs)


REFUSALS = [
    Refusal(
        "`nn.MultiheadAttention` with a method of PEFT",
        "PEFT adapts `nn.MultiheadAttention` as a whole; query and value alone only RepLoRA and LoRA can.",
        "cannot adapt the projections of nn.MultiheadAttention",
        models=("nn.MultiheadAttention",),
        methods=OF_PEFT,
    ),
    Refusal(
        "a subclass of `nn.Linear` with PEFT's HRA or BOFT",
        "These compute with the weight alone and would leave out what a subclass of `nn.Linear` adds.",
        "peft takes first for an nn.Linear",
        models=("subclass of linear",),
        methods=("peft's hra", "peft's boft"),
    ),
    Refusal(
        "merging into a subclass of `nn.Linear` with a forward of its own",
        "An update of the output cannot be folded into the weight of a subclass that computes something else.",
        "computes something else than x W",
        (*MERGING, "carries_several"),
        ("subclass of linear",),
        (*OURS, *(f"peft's {method}" for method in ("lora", "dora", "loha", "lokr"))),
    ),
    Refusal(
        "exporting such a subclass",
        "A merge in PEFT would change the outputs of such a subclass.",
        "a merge in PEFT would change the outputs",
        ("exports", "imports"),
        ("subclass of linear",),
    ),
    Refusal(
        "exporting a layer of two names, or importing one",
        "PEFT adapts a layer under one of its names only.",
        "would adapt only the first of these",
        ("exports", "imports"),
        ("layer of two names",),
    ),
    Refusal(
        "exporting `nn.MultiheadAttention`",
        "PEFT adapts outputs of layers; an attention that reads the weight would not notice.",
        "reads the weight",
        ("exports", "imports"),
        ("nn.MultiheadAttention",),
    ),
    Refusal(
        "exporting an adapted output layer that is tied to the embedding",
        "A merge in PEFT would change the embedding that is tied to an adapted output layer.",
        "shares its weight with",
        ("exports", "imports"),
        ("LLaMA with tied head",),
    ),
    Refusal(
        "importing what is not LoRA",
        "Only plain LoRA can be imported; PEFT itself uses the other folders.",
        "is not plain LoRA|only LORA can be imported",
        ("imports",),
        methods=tuple(method for method in OF_PEFT if method != "peft's lora"),
    ),
]
# Model -> why injection refuses to adapt it, and what the error says.
AT_INJECTION = dict.fromkeys(
    REFUSED,
    (
        "Only `nn.Linear`, `Conv1D` of transformers and `nn.MultiheadAttention` can be adapted.",
        "only modules that cannot be adapted",
    ),
) | {"head that is a target": ("A layer trains as a whole or by an adapter, not both.", "which trains as a whole")}
OF_TRANSFORMERS = ("trains_on_frozen_inputs", "takes_embeddings", "ties_weights_again", "writes_a_model", "generates")
# What PEFT tests and this package does not have -> why.
WITHOUT_COUNTERPART = {
    "weighted combinations of adapters, mixed batches, hot swapping": "PEFT does it with an exported adapter: "
    "[serving.md](serving.md#what-peft-can-do-with-an-exported-adapter)",
    "several adapters active at once": "one adapter is active; the others wait beside it",
    "prompt learning, trainable tokens, `target_parameters`, `lora_bias`, layer replication": "not methods of this "
    "package",
    "loading without memory for the adapter (`low_cpu_mem_usage`)": "an adapter is small; the base may be on `meta` or "
    "offloaded",
    "pickled files (`.bin`)": "adapters are safetensors files alone",
    "conversion of other methods to LoRA": "RepLoRA's A and B are LoRA without a conversion",
    "custom classes in place of PEFT's layers": "`replora.inject` wraps a subclass of `nn.Linear` as it is",
    "targets by default for each model": "the roles `q` and `v` are the default for every model",
}


def applies(promise: str, model: str) -> bool:
    if promise not in OF_TRANSFORMERS:
        return True
    return isinstance(ZOO[model].build(), PreTrainedModel) and not (promise == "generates" and "BERT" in model)


def refusal(promise: str, model: str, method: str) -> Refusal | None:
    return next((rule for rule in REFUSALS if rule.covers(promise, model, method)), None)


def cases() -> Iterator[tuple[str, str, str]]:
    for promise in PROMISES:
        for model in ZOO:
            for method in METHODS if model in SAMPLE else EVERYWHERE:
                if applies(promise, model):
                    yield promise, model, method


CASES = list(cases())


@pytest.mark.parametrize(("promise", "model", "method"), CASES)
def test_a_promise_is_kept_or_refused(promise: str, model: str, method: str, tmp_path: Path) -> None:
    case = Case(model, method, tmp_path)
    if rule := refusal(promise, model, method):
        with pytest.raises(replora.RepLoRAError, match=rule.says):
            PROMISES[promise](case)
    else:
        PROMISES[promise](case)


@pytest.mark.parametrize("method", EVERYWHERE)
@pytest.mark.parametrize("model", REFUSED)
def test_what_cannot_be_adapted_is_refused_at_once(model: str, method: str) -> None:
    case = Case(model, method)
    plain = case.plain()
    before = {name: type(module) for name, module in plain.named_modules()}
    with pytest.raises(replora.RepLoRAError, match=AT_INJECTION[model][1]):
        replora.inject(plain, case.config, also_train=case.zoo.also_train)
    assert {name: type(module) for name, module in plain.named_modules()} == before


def test_every_refusal_occurs() -> None:
    used = {refusal(*case) for case in CASES}
    assert all(rule in used for rule in REFUSALS)


def table() -> str:
    """The tables of the page."""
    refused = Counter(promise for promise, model, method in CASES if refusal(promise, model, method))
    run = Counter(promise for promise, _, _ in CASES)
    every = sum(len(METHODS if model in SAMPLE else EVERYWHERE) for model in ZOO)
    lines = ["| promise | passed | refused | not applicable | failed |", "|---|---|---|---|---|"]
    for name, promise in PROMISES.items():
        text = " ".join((promise.__doc__ or "").split()).rstrip(".")
        lines.append(f"| {text} | {run[name] - refused[name]} | {refused[name]} | {every - run[name]} | 0 |")
    lines += ["", "| refused | reason |", "|---|---|"]
    lines += [f"| adapting: {model} | {reason} |" for model, (reason, _) in AT_INJECTION.items()]
    lines += [f"| {rule.what} | {rule.reason} |" for rule in REFUSALS]
    lines += ["", "| tested by PEFT, without a counterpart here | reason |", "|---|---|"]
    lines += [f"| {what} | {why} |" for what, why in WITHOUT_COUNTERPART.items()]
    return "\n".join(lines)


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text("utf-8"), "python -m tests.adapters.test_peft_contract prints what the page lacks"


if __name__ == "__main__":
    print(table())
