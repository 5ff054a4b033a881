"""RepLoRA in the LoRA layers of peft through the command line, on a tiny ViT and a tiny LLaMA: fit, resume, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import replora
from replora.cli.main import main
from replora.results import read_results
from replora.runs import open_run
from tests.adapters.tiny_models import call
from tests.cli.helpers import QUICK, refused
from tests.fake_data import write_commonsense
from tests.test_failures import TerminateAt, assert_equal_runs, callback
from tests.tiny_llama import write_tiny_llama

torch.set_num_threads(1)

ADAPTER = ["--config=adapter/replora_peft.yaml", "--model.adapter.rank=2", "--model.adapter.hidden=4"]
INPUTS = {
    "vit": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    "llama": {"input_ids": torch.tensor([[256, 40, 50, 60]])},
}


@pytest.fixture(scope="module", params=["vit", "llama"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str], Path]:
    """Which model, the options of a run of two epochs, and the finished run."""
    home = tmp_path_factory.mktemp(request.param)
    options = ["--config=quickstart.yaml", *QUICK, *ADAPTER, "--trainer.max_epochs=2", "--model.optimizer.lr=0.05"]
    if request.param == "llama":
        sizes = {"boolq": (7, 5), "openbookqa": (6, 4)}
        write_commonsense(home, sizes)
        write_tiny_llama(home / "llama")
        options = ["--config=commonsense_smollm2.yaml", f"--model.backbone={home / 'llama'}", f"--data.root={home}"]
        options += ["--data.tasks=[boolq, openbookqa]", "--data.check_sizes=false", "--data.train_fraction=1.0"]
        options += ["--data.batch_size=4", "--model.dtype=fp32", "--trainer.enable_progress_bar=false", *ADAPTER]
        options += ["--trainer.max_epochs=2"]
    main(["fit", *options, f"--run_dir={home / 'run'}"])
    return request.param, options, home / "run"


def outputs(model: nn.Module, name: str) -> torch.Tensor:
    with torch.no_grad():
        return call(model.eval(), INPUTS[name])


def test_the_record_says_what_trained_and_what_is_deployed(run: tuple[str, list[str], Path]) -> None:
    name, _, folder = run
    results = read_results(folder)
    assert results["method"] == "replora_peft"
    assert results["options"]["hidden"] == 4
    counts, model = results["parameters"], open_run(folder).model
    own = {n: t.numel() for n, t in replora.adapter_state(model).items() if n.startswith("replora.generators.")}
    assert counts["adapter_trained"] == sum(own.values())
    stock = replora.inject(replora.remove(model), replora.PeftMethodConfig("lora", rank=2))
    assert counts["adapter_deployed"] == replora.parameter_counts(stock).adapter_trained < counts["adapter_trained"]
    assert name == "llama" or counts["head"] == 1290


def test_a_run_that_was_stopped_goes_on_exactly(run: tuple[str, list[str], Path], tmp_path: Path) -> None:
    _, options, folder = run
    with pytest.raises(SystemExit):
        main(["fit", *options, *callback(TerminateAt, epoch=1, batch=1), f"--run_dir={tmp_path}"])
    main(["fit", *options, f"--run_dir={tmp_path}", "--ckpt_path=last"])
    assert_equal_runs(folder, tmp_path)


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("reparameterize=false", "method: 'replora_peft' in the checkpoint, 'peft_lora' here"),
        ("method=dora", "method: 'replora_peft' in the checkpoint, 'replora_dora' here"),
        ("hidden=6", "adapter.hidden: 4 in the checkpoint, 6 here"),
        ("activation=gelu", "adapter.activation: 'tanh' in the checkpoint, 'gelu' here"),
        ("sharing=none", "adapter.sharing: 'group' in the checkpoint, 'none' here"),
    ],
)
@pytest.mark.parametrize("run", ["vit"], indirect=True)
def test_a_run_does_not_go_on_with_other_generators(
    run: tuple[str, list[str], Path], option: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, options, folder = run
    arguments = [*options, f"--model.adapter.{option}", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]
    assert found in refused(capsys, "fit", *arguments, f"--run_dir={folder.parent / 'other'}")


def test_its_files_are_plain_lora(run: tuple[str, list[str], Path], tmp_path: Path) -> None:
    name, _, folder = run
    model = open_run(folder).model
    want = outputs(model, name)
    main(["export", str(folder), f"--out={tmp_path / 'peft'}"])
    main(["export", str(folder), "--format=adapter", f"--out={tmp_path / 'small.safetensors'}"])
    main(["merge", str(folder), f"--out={tmp_path / 'merged'}"])
    assert any("generators" in key for key in load_file(folder / "adapter.safetensors"))
    for file in (tmp_path / "small.safetensors", tmp_path / "peft" / "adapter_model.safetensors"):
        assert {key.split(".lora_")[1][0] for key in load_file(file) if ".lora_" in key} == {"A", "B"}
        assert not any("replora" in key for key in load_file(file))
    base = replora.remove(model)
    assert not torch.allclose(outputs(base, name), want, atol=1e-4)
    described = replora.load_adapter(base, tmp_path / "small.safetensors")
    assert (described["method"], described["trained_as"]["method"]) == ("peft_lora", "replora_peft")
    assert torch.equal(outputs(base, name), want)
    opened = PeftModel.from_pretrained(replora.remove(base), tmp_path / "peft")
    torch.testing.assert_close(outputs(opened, name), want, rtol=1e-5, atol=1e-5)
