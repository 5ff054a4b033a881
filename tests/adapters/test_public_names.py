"""The names that people know from peft, and targets by name."""

from __future__ import annotations

import copy
import inspect

import peft
import pytest
import torch

import replora
from tests.adapters.tiny_models import MODELS, call


def built(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS[name].build().eval()


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return replora.adapter_state(model)


# --- LoRAConfig


def test_lora_config_is_the_lora_of_before() -> None:
    new, old = replora.LoRAConfig(rank=3, alpha=6, targets=["q"]), replora.RepLoRAConfig(3, 6, "none", targets=["q"])
    assert vars(new) == vars(old)
    assert new.name == old.name == "lora"
    states = []
    for config in (new, old):
        model = built("timm_vit")
        torch.manual_seed(1)
        replora.inject(model, config, also_train=["head"])
        states.append(state(model))
        assert replora.describe(model)["options"] == replora.describe(model)["options"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_lora_config_goes_through_a_file(tmp_path) -> None:
    model = replora.inject(built("hf_llama"), replora.LoRAConfig(rank=2), also_train=["lm_head"])
    replora.save_adapter(model, tmp_path / "a.safetensors")
    other = built("hf_llama")
    replora.load_adapter(other, tmp_path / "a.safetensors")
    assert all(torch.equal(value, state(other)[name]) for name, value in state(model).items())
    replora.save_adapter(model, tmp_path / "b.safetensors", deploy=True)


@pytest.mark.parametrize("config", [replora.LoRAConfig(2), replora.RepLoRAConfig(3), replora.PeftMethodConfig("lokr")])
def test_arguments_make_an_equal_configuration(config: replora.AdapterConfig) -> None:
    assert type(config)(**config.arguments()) == config
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize("cls", [replora.RepLoRAConfig, replora.LoRAConfig, replora.PeftMethodConfig])
def test_help_and_completion_know_the_options(cls: type[replora.AdapterConfig]) -> None:
    config = cls()
    shown = inspect.signature(cls).parameters
    assert {name: getattr(config, name) for name in shown} == config.arguments()
    assert shown["rank"].default == config.rank == 8


# --- peft's names


@pytest.mark.parametrize("cls", [replora.RepLoRAConfig, replora.LoRAConfig, replora.PeftMethodConfig])
def test_options_by_their_names_in_peft(cls: type) -> None:
    theirs = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj"])
    names = ("r", "lora_alpha", "lora_dropout", "target_modules")
    ours = cls(**{name: getattr(theirs, name) for name in names})
    assert (ours.rank, ours.alpha, ours.dropout, list(ours.targets)) == (4, 8, 0.1, ["q_proj"])
    assert cls(rank=4, r=4).rank == 4
    with pytest.raises(replora.RepLoRAError, match="r=8 and rank=4 are two names of one option"):
        cls(rank=4, r=8)
    with pytest.raises(TypeError):
        cls(lora_rank=8)


def test_a_method_without_the_option_does_not_take_its_other_name() -> None:
    with pytest.raises(TypeError, match="target_modules"):
        replora.BitFitConfig(target_modules=["q"])


def test_modules_to_save_train_with_the_adapter() -> None:
    one = replora.inject(built("timm_vit"), replora.LoRAConfig(), modules_to_save=["head"])
    two = replora.inject(built("timm_vit"), replora.LoRAConfig(), also_train=["head"])
    assert one.replora.trained == two.replora.trained
    assert "head.weight" in one.replora.trained


def test_the_former_name_of_the_peft_methods() -> None:
    assert replora.PeftConfig is replora.PeftMethodConfig
    assert "PeftConfig" not in dir(replora)


# --- targets


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "out"), ("fc1", "fc2")])
def test_targets_of_a_description_are_targets(name: str, targets: tuple[str, ...]) -> None:
    """The adapter of the same targets by name is the same: groups, banks and names of tensors."""
    try:
        found = replora.find_targets(built(name), targets)
    except replora.TargetNotFoundError:
        pytest.skip(f"{name} has no {targets}")
    by_name = replora.find_targets(built(name), [target.name for target in found])
    assert by_name == found
    states = []
    for wanted in (targets, [target.name for target in found]):
        model = built(name)
        torch.manual_seed(1)
        replora.inject(model, replora.RepLoRAConfig(2, targets=wanted), example=MODELS[name].inputs())
        assert replora.describe(model)["targets"] == [target.name for target in found]
        states.append(state(model))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("name", "ends", "count"),
    [("hf_llama", ["q_proj"], 2), ("hf_llama", ["self_attn.q_proj", "mlp.up_proj"], 4), ("timm_vit", ["mlp.fc1"], 3)],
)
def test_the_end_of_a_name_means_what_it_means_in_peft(name: str, ends: list[str], count: int) -> None:
    model = built(name)
    found = replora.find_targets(model, ends)
    theirs = peft.get_peft_model(built(name), peft.LoraConfig(target_modules=ends)) if name == "hf_llama" else None
    if theirs is not None:
        assert [target.name for target in found] == list(theirs.targeted_module_names)
    assert len(found) == count
    assert all(any(target.module.endswith(f".{end}") for end in ends) for target in found)


def test_an_end_is_whole_names() -> None:
    with pytest.raises(replora.TargetNotFoundError, match="matches nothing"):
        replora.find_targets(built("hf_llama"), ["_proj"])


def test_looking_does_not_change_the_model() -> None:
    model, inputs = built("timm_vit"), MODELS["timm_vit"].inputs()
    before, names = call(model, inputs), [name for name, _ in model.named_modules()]
    found = replora.find_targets(model)
    assert str(found[0]) == "blocks.0.attn.qkv[q]: role q, 24 x 24, shares with blocks.0.attn"
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(call(model, inputs), before)


@pytest.mark.parametrize(
    ("own", "peft"),
    [("targets", "target_modules"), ("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")],
)
def test_both_names_of_an_option_with_one_value_are_accepted_and_with_two_are_refused(own: str, peft: str) -> None:
    equal = {"targets": (("q", "k"), ["q", "k"])}.get(own, (0.5, 0.5) if own in ("alpha", "dropout") else (4, 4))
    for config in (replora.LoRAConfig, replora.RepLoRAConfig, replora.PeftMethodConfig):
        assert getattr(config(**{own: equal[0], peft: equal[1]}), own) == equal[0]
        with pytest.raises(replora.RepLoRAError, match="two names of one option"):
            config(**{own: equal[0], peft: ["v"] if own == "targets" else 0.25})


def test_a_positional_rank_and_r_are_two_names_of_one_option() -> None:
    assert replora.LoRAConfig(8, r=8).rank == 8
    with pytest.raises(replora.RepLoRAError, match="r=8 and rank=4 are two names"):
        replora.LoRAConfig(4, r=8)


def test_lora_is_replora_with_free_factors_and_its_repr_can_be_evaluated() -> None:
    lora = replora.LoRAConfig(rank=4, targets=("q",))
    assert lora == replora.RepLoRAConfig(rank=4, factors="none", targets=("q",))
    assert hash(lora) == hash(replora.RepLoRAConfig(rank=4, factors="none", targets=("q",)))
    assert lora != replora.RepLoRAConfig(rank=4, targets=("q",))
    assert lora != replora.LoRAConfig(rank=8, targets=("q",))
    for config in (lora, replora.RepLoRAConfig(hidden=3), replora.PeftMethodConfig(method="ia3")):
        assert eval(repr(config), vars(replora).copy()) == config


@pytest.mark.parametrize("entry", ["self_attn", "layers.0.self_attn", "*.self_attn"])
@pytest.mark.parametrize("kdim", [None, 12])
def test_an_attention_module_by_its_name_means_its_input_projections(entry: str, kdim: int | None) -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    layer.self_attn = torch.nn.MultiheadAttention(16, 2, kdim=kdim, batch_first=True)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([layer])
    found = replora.find_targets(model, [entry])
    assert found == replora.find_targets(model, ["q", "k", "v"])
    assert [target.role for target in found] == ["q", "k", "v"]
