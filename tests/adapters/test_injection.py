"""What injection changes, verifies and refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import replora
from replora.adapters.low_rank.layer import AdaptedLinear
from tests.adapters.test_contract import adapted, build, disturb
from tests.adapters.tiny_models import MODELS, call, hf_bart, tied_llama


@pytest.mark.parametrize("model_name", ["timm_vit", "timm_swin", "torchvision_swin", "torch_encoder"])
def test_only_query_and_value_rows_change(model_name: str) -> None:
    model, _ = adapted(model_name, "replora")
    disturb(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with replora.merged(model):
        changed = {n: (t != before[n]).any(-1) for n, t in model.named_parameters() if not torch.equal(t, before[n])}
    assert len(changed) == len(model.replora.updates)
    for name, rows in changed.items():
        third = len(rows) // 3
        assert rows[:third].all(), name
        assert not rows[third : 2 * third].any(), name
        assert rows[2 * third :].all(), name


def test_every_target_changes_the_output_on_its_own() -> None:
    for model_name, tiny in MODELS.items():
        model, _ = adapted(model_name, "replora")
        before = call(model, tiny.inputs())
        for update in model.replora.updates:
            for view in update.views:
                V = view.bank.mlp_B.V[view.slot]
                with torch.no_grad():
                    V[view.group].fill_(1.0)
                    assert not torch.equal(call(model, tiny.inputs()), before), (model_name, update.names)
                    V[view.group].zero_()


class Ignores(nn.Module):
    """An attention that never uses its `q_proj`."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.v_proj(x))


class Detaches(Ignores):
    """One that calls its `q_proj`, but throws the result away."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.v_proj(x) + 0.0 * self.q_proj(x))


@pytest.mark.parametrize("model_class", [Ignores, Detaches])
def test_dead_target_is_refused_and_the_model_left_as_it_was(model_class) -> None:
    model = nn.ModuleDict({"attn": model_class()})["attn"]
    wrapped = nn.Sequential(model)
    with pytest.raises(replora.DeadTargetError, match=r"0\.q_proj"):
        replora.inject(wrapped, replora.RepLoRAConfig(rank=2), also_train=["0.head"], example=torch.randn(2, 4))
    assert not hasattr(wrapped, "replora")
    assert isinstance(model.q_proj, nn.Linear)
    assert all(p.requires_grad for p in wrapped.parameters())


def test_without_an_example_the_first_pass_finds_the_dead_target() -> None:
    model = replora.inject(nn.Sequential(Ignores()), replora.RepLoRAConfig(rank=2), also_train=["0.head"])
    with pytest.raises(replora.DeadTargetError, match=r"not used in the forward pass: 0\.q_proj"):
        model(torch.randn(2, 4))
    unchecked = replora.inject(
        nn.Sequential(Ignores()), replora.RepLoRAConfig(rank=2), also_train=["0.head"], check=False
    )
    unchecked(torch.randn(2, 4))


@pytest.mark.parametrize(
    "model_name", ["timm_swin_v2", "timm_beit", "timm_eva02", "torchvision_swin", "torchvision_swin3d"]
)
def test_peft_on_a_projection_that_is_not_called_is_refused(model_name: str) -> None:
    model, tiny = build(model_name)
    with pytest.raises(replora.DeadTargetError, match="qkv"):
        replora.inject(model, replora.PeftMethodConfig("dora", rank=2), also_train=[tiny.head], example=tiny.inputs())


def test_peft_on_a_projection_that_is_not_called_is_refused_at_the_first_pass() -> None:
    model, tiny = build("torchvision_swin3d")
    model = nn.Sequential(model)  # of which no example input can be made up
    replora.inject(model, replora.PeftMethodConfig("dora", rank=2), also_train=[f"0.{tiny.head}"])
    with pytest.raises(replora.DeadTargetError, match=r"not used in the forward pass.*qkv"):
        call(model, tiny.inputs())


def test_peft_on_torch_s_attention_is_refused() -> None:
    with pytest.raises(replora.RepLoRAError, match=r"peft cannot adapt the projections of nn\.MultiheadAttention"):
        replora.inject(MODELS["torch_encoder"].build(), replora.PeftMethodConfig("dora"))


@pytest.mark.parametrize("model_name", [name for name, tiny in MODELS.items() if not tiny.dropout_possible])
def test_dropout_where_a_weight_is_only_read_is_refused(model_name: str) -> None:
    tiny = MODELS[model_name]
    with pytest.raises(replora.RepLoRAError, match=r"dropout: 0\.1 is not possible"):
        replora.inject(tiny.build(), replora.RepLoRAConfig(rank=2, dropout=0.1), example=tiny.inputs())


@pytest.mark.parametrize("model_name", [name for name, tiny in MODELS.items() if tiny.dropout_possible])
def test_dropout_acts_in_training_only(model_name: str) -> None:
    model, tiny = build(model_name)
    replora.inject(model, replora.RepLoRAConfig(rank=2, dropout=0.5), also_train=[tiny.head], example=tiny.inputs())
    disturb(model)
    assert torch.equal(call(model, tiny.inputs()), call(model, tiny.inputs()))
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            module.train()
    assert not torch.equal(call(model, tiny.inputs()), call(model, tiny.inputs()))


def test_module_used_twice_gets_the_sum_of_its_gradients() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.q_proj(self.q_proj(x))

    model = replora.inject(
        nn.Sequential(Twice()), replora.RepLoRAConfig(rank=2, targets=["q"]), example=torch.randn(2, 4)
    )
    disturb(model.eval())
    x = torch.randn(3, 4)
    unmerged = model(x)
    with replora.merged(model):
        torch.testing.assert_close(model(x), unmerged)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = replora.inject(
        body, replora.RepLoRAConfig(rank=2, targets=["0"]), also_train=["2"], example=torch.randn(2, 4)
    )
    model.train()
    model(5 + torch.randn(8, 4))
    assert torch.equal(body[1].running_mean, torch.zeros(4))
    full = replora.inject(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), replora.FullConfig())
    full.train()
    full(5 + torch.randn(8, 4))
    assert full[1].running_mean.any()
    assert "1.running_mean" in replora.adapter_state(full)


def test_injection_leaves_the_random_state_and_the_mode_alone() -> None:
    model, tiny = build("timm_vit")
    model.train()
    model.blocks[1].eval()
    replora.inject(model, replora.LinearProbeConfig(), also_train=["head"])
    replora.remove(model)
    state = torch.get_rng_state()
    from replora.adapters.verify import verify_targets

    replora.inject(model, replora.RepLoRAConfig(rank=2, factors="none"), check=False)
    state = torch.get_rng_state()
    verify_targets(model, model.replora, tiny.inputs())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.blocks[1].training
    assert model.replora.targets_verified


def test_merged_model_refuses_to_train() -> None:
    model, tiny = adapted("timm_vit", "replora")
    replora.merge(model).train()
    with pytest.raises(replora.RepLoRAError, match=r"merged.*replora\.unmerge"):
        call(model, tiny.inputs())
    with pytest.raises(replora.RepLoRAError, match="merged"), replora.disabled(model):
        pass


def test_refused_options_leave_no_half_adapted_model() -> None:
    """`out` of torch's attention is wrapped before `q` is found to be impossible with dropout."""
    model, tiny = build("torchvision_vit")
    before, keys = call(model, tiny.inputs()), list(model.state_dict())
    with pytest.raises(replora.RepLoRAError, match="dropout"):
        replora.inject(model, replora.RepLoRAConfig(targets=["fc1", "q", "out"], dropout=0.1), example=tiny.inputs())
    assert list(model.state_dict()) == keys
    assert not hasattr(model, "replora")
    assert torch.equal(call(model, tiny.inputs()), before)


def test_second_injection_and_wrong_head_are_refused() -> None:
    model, _ = adapted("timm_vit", "replora")
    with pytest.raises(replora.RepLoRAError, match=r"already carries 'replora'.*replora\.remove"):
        replora.inject(model, replora.RepLoRAConfig())
    with pytest.raises(replora.RepLoRAError, match=r"no submodule 'haed'\. Did you mean 'head'"):
        replora.inject(MODELS["timm_vit"].build(), replora.RepLoRAConfig(), also_train=["haed"])
    with pytest.raises(replora.RepLoRAError, match="linear_probe trains the head alone"):
        replora.inject(MODELS["timm_vit"].build(), replora.LinearProbeConfig())


def test_unknown_option_of_peft_is_named() -> None:
    config = replora.PeftMethodConfig("dora", options={"use_rlora": True})
    with pytest.raises(replora.RepLoRAError, match=r"has no 'use_rlora'\. Did you mean .*'use_rslora'"):
        replora.inject(MODELS["timm_vit"].build(), config)


@pytest.mark.parametrize("method", ["lora", "ia3", "oft", "boft", "loha", "lokr", "hra"])
def test_further_methods_of_peft_train(method: str) -> None:
    model, tiny = build("hf_vit")
    options = {"oft": {"oft_block_size": 4}, "boft": {"boft_block_size": 4}}.get(method, {})
    config = replora.PeftMethodConfig(method, rank=2, options=options)
    replora.inject(model, config, also_train=[tiny.head], example=tiny.inputs())
    call(model, tiny.inputs()).square().mean().backward()
    assert any(
        p.grad is not None and p.grad.any()
        for n, p in model.named_parameters()
        if n not in model.replora.head and p.requires_grad
    )


def test_public_lora_baselines_can_be_imitated() -> None:
    """NOAH's LoRA: one A and B on the joint q, k, v, both random: 294,912 numbers at rank 8 on ViT-B."""
    config = replora.RepLoRAConfig(rank=2, factors="none", init="normal002", dropout=0.1, targets=["*.attn.qkv"])
    model = replora.inject(MODELS["timm_vit"].build(), config, also_train=["head"])
    assert replora.parameter_counts(model).adapter_trained == 3 * 2 * (24 + 72)
    assert all(B.any() for B in model.replora.banks[0].B)


def test_weight_decay_leaves_vectors_alone() -> None:
    model, _ = adapted("timm_vit", "replora")
    decayed, not_decayed = replora.parameter_groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert not_decayed["weight_decay"] == 0.0
    assert {names[id(p)].rpartition(".")[2] for p in not_decayed["params"]} == {"diagonal", "c", "bias"}
    assert {id(p) for p in decayed["params"] + not_decayed["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }


def test_import_is_light() -> None:
    heavy = ("timm", "transformers", "lightning", "peft", "torchvision", "torchmetrics", "sklearn", "matplotlib")
    code = f"import sys, replora; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("method", ["replora", "lora"])
def test_copies_of_data_parallel_are_refused(method: str) -> None:
    model, tiny = adapted("timm_vit", method)
    with pytest.raises(replora.RepLoRAError, match="DistributedDataParallel"):
        call(model._replicate_for_data_parallel(), tiny.inputs())
    call(model, tiny.inputs())


def test_copies_of_data_parallel_run_where_no_factors_are_read() -> None:
    model, tiny = adapted("timm_vit", "full")
    copy = model._replicate_for_data_parallel()
    copy._parameters = model._parameters  # which DataParallel gives it on its device
    assert call(copy, tiny.inputs()).shape == (2, 5)


def test_copies_of_data_parallel_compute_with_their_own_layers_of_peft() -> None:
    model, _ = adapted("timm_vit", "dora")
    layer = model.blocks[0].attn.qkv
    copy = layer._replicate_for_data_parallel()
    copy._parameters, copy._modules = layer._parameters, dict(layer._modules)
    copy._modules["base_layer"] = torch.nn.Linear(24, 72)  # which DataParallel gives it on its device
    x = torch.randn(1, 3, 24)
    with replora.disabled(model):
        torch.testing.assert_close(copy(x), copy.base_layer(x))
        assert not torch.allclose(copy(x), layer(x))
    assert not torch.allclose(copy(x), layer(x))


@pytest.mark.parametrize(
    ("build_tied", "head"), [(tied_llama, "lm_head"), (tied_llama, "model.embed_tokens"), (hf_bart, "lm_head")]
)
def test_a_head_that_is_tied_to_a_frozen_module_is_refused(build_tied, head: str, tmp_path) -> None:
    model = build_tied().eval()
    keys = set(model.state_dict())
    config = replora.RepLoRAConfig(rank=2, hidden=4)
    with pytest.raises(replora.RepLoRAError, match=f"'{head}' shares its weight with .*embed_tokens|lm_head.*untie"):
        replora.inject(model, config, also_train=[head])
    assert set(model.state_dict()) == keys
    # Untied it trains and is saved; the file is refused where the two are one.
    untied = build_tied().eval()
    module = untied.get_submodule(head)
    module.weight = nn.Parameter(module.weight.detach().clone())
    replora.inject(untied, config, also_train=[head])
    assert replora.parameter_counts(untied).head == module.weight.numel()
    file = replora.save_adapter(untied, tmp_path / "a.safetensors")
    with pytest.raises(replora.RepLoRAError, match="shares its weight with"):
        replora.load_adapter(model, file)
    assert set(model.state_dict()) == keys
    replora.export_peft(untied, tmp_path / "peft")
    with pytest.raises(replora.PeftFormatError, match=r"\(modules_to_save\), but .* shares its weight"):
        replora.import_peft(model, tmp_path / "peft")
    assert set(model.state_dict()) == keys


def test_modules_that_share_a_weight_with_each_other_train_together() -> None:
    model = tied_llama().eval()
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4), also_train=["lm_head", "model.embed_tokens"])
    assert replora.parameter_counts(model).head == model.lm_head.weight.numel()


def test_a_head_inside_another_counts_once(tmp_path) -> None:
    model, tiny = build("torchvision_vit")
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4), also_train=["heads", "heads.head", "heads"])
    disturb(model)
    assert replora.parameter_counts(model).head == sum(p.numel() for p in model.heads.parameters())
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    there, _ = build("torchvision_vit")
    replora.load_adapter(there, file, name="one")
    replora.load_adapter(there, file, name="two")
    replora.set_adapter(there, "one")
    torch.testing.assert_close(call(there, tiny.inputs()), call(model, tiny.inputs()), rtol=0, atol=0)
