"""RepLoRA laid over the LoRA layers of `peft`: equal to our own injection, and plain LoRA in every file."""

import copy

import peft
import pytest
import torch
from torch import nn

import replora
from replora.adapters.container import adapters_of


def build(seed: int = 0) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


IDS = torch.arange(24).reshape(2, 12)


def wrapped(targets=("q_proj", "v_proj"), seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return peft.get_peft_model(build(), peft.LoraConfig(r=4, target_modules=list(targets), **options))


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return model.eval()


def test_equal_to_our_own_injection() -> None:
    own = replora.inject(build(), replora.RepLoRAConfig(rank=4, alpha=8), check=False)
    model = replora.reparameterize(wrapped())
    with torch.no_grad():
        values = {name: p.normal_() for name, p in adapters_of(own).banks.named_parameters()}
        for name, parameter in model.replora["default"].banks.named_parameters():
            parameter.copy_(values.pop(name.replace("bias_", "")))
    assert not values
    (A, B), _ = adapters_of(own).factor_banks()[0]()
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    assert torch.equal(layer.lora_A["default"].weight, A[1])
    assert torch.equal(layer.lora_B["default"].weight, B[1])
    torch.testing.assert_close(output(model), output(own), rtol=0, atol=2e-6)


def test_the_update_is_zero_at_the_start_and_a_has_the_scale_of_lora() -> None:
    model = replora.reparameterize(wrapped())
    assert torch.equal(output(model), output(build()))
    A = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    torch.testing.assert_close(float(A.square().mean()), 1 / (3 * 32), rtol=0.5, atol=0)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("embed_tokens", "q_proj", "gate_proj", "up_proj")])
def test_a_saved_folder_is_plain_lora_and_training_goes_on_from_it(targets, tmp_path) -> None:
    model = train(replora.reparameterize(wrapped(targets)))
    expected = output(model)
    model.save_pretrained(tmp_path)
    stock = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    assert torch.equal(output(stock), expected)
    again = peft.PeftModel.from_pretrained(build(), tmp_path, is_trainable=True)
    replora.reparameterize(again, generators=tmp_path)
    for (name, one), (_, other) in zip(model.replora.named_parameters(), again.replora.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(output(again.eval()), expected)


def test_without_the_file_the_generators_are_solved_for(tmp_path) -> None:
    model = train(replora.reparameterize(wrapped()))
    model.save_pretrained(tmp_path)
    (tmp_path / "replora_generators.safetensors").unlink()
    again = peft.PeftModel.from_pretrained(build(), tmp_path, is_trainable=True)
    replora.reparameterize(again)
    torch.testing.assert_close(output(again.eval()), output(model), rtol=0, atol=1e-5)


def test_copies_states_and_switches() -> None:
    model = train(replora.reparameterize(wrapped()))
    expected = output(model)
    assert torch.equal(output(copy.deepcopy(model)), expected)
    other = replora.reparameterize(wrapped(seed=1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other.eval()), expected)
    with model.disable_adapter():
        assert torch.equal(output(model), output(build()))
    assert torch.equal(output(model), expected)


def test_merging_and_materializing_leave_nothing_behind() -> None:
    model = train(replora.reparameterize(wrapped()))
    expected = output(model)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(output(merged), expected, rtol=0, atol=1e-5)
    assert not merged._forward_pre_hooks
    replora.materialize(model)
    assert torch.equal(output(model), expected)
    assert not hasattr(model, "replora")
    assert "GeneratedLinear" not in repr(model)
