"""What our functions say of a model after `replora.reparameterize`, and of generators inside of `replora.inject`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import replora
from tests.adapters.peft_lora.test_reparameterize import build, output, train, wrapped


def of_peft(**options: Any) -> torch.nn.Module:
    return replora.inject(build(), replora.PeftMethodConfig(**({"method": "lora", "rank": 4} | options)))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("head", [(), ("lm_head",)], ids=["alone", "with a head"])
def test_both_ways_are_described_alike(dora: bool, head: tuple[str, ...]) -> None:
    model = replora.reparameterize(wrapped(use_dora=dora, modules_to_save=list(head) or None))
    config = replora.PeftMethodConfig("dora" if dora else "lora", rank=4, alpha=8, reparameterize=True)
    own = replora.inject(build(), config, also_train=head)
    found, want = replora.describe(model), replora.describe(own)
    assert found["options"].pop("targets") == found["targets"] == want["targets"]
    del want["options"]["targets"]
    assert found == want
    groups, expected = (replora.parameter_groups(m) for m in (model, own))
    assert [sum(p.numel() for p in g["params"]) for g in groups] == [
        sum(p.numel() for p in g["params"]) for g in expected
    ]
    stock = {n: p for n, p in wrapped(use_dora=dora).named_parameters() if p.requires_grad}
    assert replora.parameter_counts(model).adapter_deployed == sum(p.numel() for p in stock.values())


def test_biases_that_the_configuration_trains_are_counted() -> None:
    model = replora.reparameterize(wrapped(["q_proj"], lora_bias=True))
    with_bias, without = (replora.parameter_counts(m) for m in (model, replora.reparameterize(wrapped(["q_proj"]))))
    assert with_bias.adapter_trained - without.adapter_trained == 2 * 32
    assert with_bias.adapter_deployed - without.adapter_deployed == 2 * 32


def test_one_of_several_adapters_is_described() -> None:
    model = wrapped()
    model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for name in ("default", "b"):
        replora.reparameterize(model, name)
    model.set_adapter("b")
    assert replora.describe(model)["options"]["rank"] == 2
    model.base_model.set_adapter(["default", "b"])
    with pytest.raises(replora.RepLoRAError, match="default and b are in use at once"):
        replora.describe(model)


def test_a_model_that_peft_did_not_wrap() -> None:
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"]), build())
    description = replora.describe(replora.reparameterize(model))
    assert description["targets"] == [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)]


@pytest.mark.parametrize("name", ["merge", "unmerge", "merge_and_unload", "remove", "adapter_state", "adapter_names"])
def test_other_functions_say_what_to_call_instead(name: str) -> None:
    with pytest.raises(replora.RepLoRAError, match=r"methods: save_pretrained, merge_adapter.*replora\.materialize"):
        getattr(replora, name)(replora.reparameterize(wrapped()))


def test_neither_way_is_laid_over_the_other() -> None:
    with pytest.raises(replora.RepLoRAError, match=r"replora\.reparameterize\(model\)"):
        replora.inject(wrapped(), replora.RepLoRAConfig())
    for function in (replora.reparameterize, replora.materialize):
        with pytest.raises(replora.RepLoRAError, match="reparameterize=True"):
            function(of_peft(reparameterize=True))


@pytest.mark.parametrize("method", ["ia3", "oft", "boft", "loha", "lokr", "hra"])
def test_methods_without_a_and_b_are_refused(method: Any) -> None:
    with pytest.raises(replora.RepLoRAError, match=f"{method!r} has no A and B .* Choose method: lora or dora"):
        replora.PeftMethodConfig(method, reparameterize=True)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"activation": "tan"}, {"sharing": None}, {"scale_exponent": 2}])
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(replora.RepLoRAError, match=next(iter(wrong))):
        replora.PeftMethodConfig("lora", reparameterize=True, **wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"use_rslora": True},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
        {"r": 8},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_peft_go_with_it(options: dict[str, Any], tmp_path: Path) -> None:
    model = train(of_peft(reparameterize=True, options=options))
    want = output(model)
    for deploy in (False, True):
        path = replora.save_adapter(model, tmp_path / f"{deploy}.safetensors", deploy=deploy)
        again = build()
        replora.load_adapter(again, path)
        assert replora.describe(again)["targets"] == replora.describe(model)["targets"]
        assert torch.equal(output(again), want)
    counts = replora.parameter_counts(model)
    assert replora.parameter_counts(again).adapter_trained == counts.adapter_deployed < counts.adapter_trained


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers_to_transform": [0]}, "peft refuses"), ({"lora_bias": True}, "peft cannot merge")],
)
def test_what_peft_refuses_is_an_error_of_ours(options: dict[str, Any], message: str) -> None:
    with pytest.raises(replora.RepLoRAError, match=message):
        replora.merge(of_peft(options=options))


def test_nothing_of_peft_is_left_behind() -> None:
    model = replora.remove(of_peft(reparameterize=True))
    assert not hasattr(model, "peft_config")
    assert torch.equal(output(model), output(build()))
