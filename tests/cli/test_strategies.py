"""Precision, gradient checkpointing, compilation and the strategies that need a GPU, as far as a CPU can test them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

import replora
from lightning_modules import ImageClassification, ShardedBackboneStrategy
from replora.backbones.vision import checkpoint_gradients
from replora.cli.main import main
from replora.config_files import packaged_configs
from replora.errors import RepLoRAError
from replora.results import read_results
from tests.cli.helpers import fit

UNTESTED = ["--test_after_fit=false", "--trainer.limit_val_batches=0"]
SMALL = [*UNTESTED, "--model.drop_path_rate=0.2"]


def trained(run):
    return replora.read_adapter(run / "adapter.safetensors")[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("plain") / "run", *SMALL)


class CountRecomputed(Callback):
    """Counts how often the first block runs in a step."""

    calls = 0

    def on_train_start(self, trainer, pl_module) -> None:  # noqa: ARG002
        CountRecomputed.calls = 0
        pl_module.model.blocks[0].attn.register_forward_pre_hook(self._count)

    def _count(self, *_args) -> None:
        CountRecomputed.calls += 1


def test_gradient_checkpointing_computes_twice_and_changes_nothing(plain, tmp_path):
    counted = "--trainer.callbacks+=tests.cli.test_strategies.CountRecomputed"
    run = fit(tmp_path, *SMALL, "--model.gradient_checkpointing=true", counted)
    assert CountRecomputed.calls == 4, "2 steps, forward and again in backward"
    one, two = trained(plain), trained(run)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gradient_checkpointing_is_refused_where_there_is_none():
    with pytest.raises(RepLoRAError, match="timm's Linear does not offer it"):
        checkpoint_gradients(torch.nn.Linear(1, 1))


def test_compiled_training_equals_eager(tmp_path, monkeypatch):
    """Without drop path, whose random numbers a compiler draws in another order, and without the minute of inductor."""
    compile_model = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_model(model, backend="aot_eager"))
    one = trained(fit(tmp_path / "eager", *UNTESTED))
    two = trained(fit(tmp_path / "compiled", *UNTESTED, "--model.compile=true"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)


def test_evaluations_of_all_sizes_share_one_graph(monkeypatch):
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    compile_model = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model: compile_model(model, backend=count))
    torch._dynamo.reset()
    module = ImageClassification(10, "vit_nano", pretrained=False, compile=True).eval()
    eager = ImageClassification(10, "vit_nano", pretrained=False).eval()
    eager.load_state_dict(module.state_dict())
    size = module.backbone.input_size
    with torch.inference_mode(), replora.merged(module.model):  # as evaluations are
        found = []
        for batch_size in (6, 3, 2, 6):
            images = torch.rand(batch_size, 3, size, size)
            torch.testing.assert_close(module(images), eager(images), rtol=1e-4, atol=1e-4)
            found.append(len(graphs))
    assert found == [found[0]] * 4


def test_a_log_line_says_that_the_model_is_compiled(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _: None)
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(tmp_path / "run", *UNTESTED, "--model.compile=true")
    assert [text for text in caplog.messages if text.startswith("compile: the first batch")]


class Dtypes(Callback):
    """What the parameters are while a run trains."""

    seen: dict = {}  # noqa: RUF012

    def on_train_end(self, trainer, pl_module) -> None:  # noqa: ARG002
        Dtypes.seen = {name: parameter.dtype for name, parameter in pl_module.model.named_parameters()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_sixteen_bits(precision, plain, tmp_path):
    dtypes = "--trainer.callbacks+=tests.cli.test_strategies.Dtypes"
    run = fit(tmp_path, *SMALL[2:], "--trainer.limit_val_batches=1", f"--trainer.precision={precision}", dtypes)
    content = read_results(run)
    assert content["fit"]["precision"] == precision
    assert 0 <= content["test"]["metrics"]["test/accuracy"] <= 1
    whole, half = torch.float32, torch.bfloat16 if precision == "bf16-true" else torch.float32
    for name, dtype in Dtypes.seen.items():
        assert dtype == (whole if name.startswith(("replora.", "head.")) else half), name
    one, two = trained(plain), trained(run)
    assert all(tensor.dtype == torch.float32 for tensor in two.values())
    assert any(not torch.equal(two[name], two[name].bfloat16().float()) for name in two), "not rounded to 16 bit"
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0.1, atol=0.02, msg=name)


# --- strategies for GPUs


def module() -> ImageClassification:
    adapter = replora.RepLoRAConfig(rank=2, hidden=8)
    return ImageClassification(3, backbone="vit_nano", pretrained=False, adapter=adapter)


@pytest.mark.parametrize(
    "strategy",
    [FSDPStrategy(), ModelParallelStrategy(), SimpleNamespace(zero_stage_3=True)],
    ids=["fsdp", "model_parallel", "deepspeed_stage_3"],
)
def test_strategies_that_take_the_adapter_apart_are_refused(strategy):
    model = module()
    model._trainer = SimpleNamespace(strategy=strategy)
    with pytest.raises(RepLoRAError, match=r"--config trainer/fsdp\.yaml shards the frozen weights"):
        model.setup("fit")


@pytest.mark.parametrize("strategy", [DDPStrategy(), ShardedBackboneStrategy(), SimpleNamespace(zero_stage_3=False)])
def test_strategies_that_leave_it_whole_are_not(strategy):
    model = module()
    model._trainer = SimpleNamespace(strategy=strategy)
    model.setup("fit")


def test_deepspeed_configuration_is_stage_2():
    from lightning.pytorch.strategies import StrategyRegistry

    config = yaml.safe_load(packaged_configs()["trainer/deepspeed.yaml"].read_text())
    assert StrategyRegistry[config["trainer"]["strategy"]]["init_params"]["stage"] == 2


def test_sharding_needs_something_frozen(tmp_path, capsys):
    options = ["--config=trainer/fsdp.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--config=quickstart.yaml",
                "--config=adapter/full.yaml",
                *options,
                "--trainer.precision=32-true",
                "--data.shots=1",
                "--trainer.max_epochs=1",
                f"--run_dir={tmp_path}",
            ]
        )
    assert "this method trains all of them" in capsys.readouterr().err
