"""`export` and `merge`, and the files they write opened by stock tools where this package is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

import replora
from replora.adapters.low_rank.frozen_layers import SetAside
from replora.adapters.peft_methods import peft_layers
from replora.adapters.state import read_metadata
from replora.cli.main import main
from replora.export import ExportError, Trained, load_trained, load_transformers, merge
from replora.runs import open_run
from tests.adapters.test_contract import disturb
from tests.adapters.test_merge import Int8Linear
from tests.adapters.tiny_models import call, hf_bart, hf_llama, hf_vit, timm_vit
from tests.cli.helpers import fit
from tests.cli.test_own_data import refused
from tests.tiny_llama import write_tiny_llama

torch.set_num_threads(1)

OWN = ("replora", "lightning_modules", "datamodules", "__editable__")
TRANSFORMERS = {"llama": (hf_llama, ()), "bart": (hf_bart, ()), "vit": (hf_vit, ("classifier",))}
EXAMPLES = {
    "llama": {"input_ids": torch.tensor([[0, 7, 9, 4, 2], [0, 8, 3, 5, 2]])},
    "bart": {"input_ids": torch.tensor([[0, 7, 9, 4, 2], [0, 8, 3, 5, 2]])},
    "vit": {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))},
    "run": {"x": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models and adapter files of three transformers families, a timm run, and what each computes."""
    home = tmp_path_factory.mktemp("deployment")
    want = {}
    for name, (build, heads) in TRANSFORMERS.items():
        torch.manual_seed(0)
        model = build().eval()
        model.save_pretrained(home / f"{name}_base")
        replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4), also_train=heads)
        disturb(model)
        want[name] = call(model, EXAMPLES[name]).detach()
        replora.save_adapter(model, home / f"{name}.safetensors")
    run = fit(home / "run", "--config=adapter/replora.yaml", "--model.optimizer.lr=0.05", "--seed_everything=3")
    with torch.no_grad():
        want["run"] = open_run(run).model(EXAMPLES["run"]["x"])
    save_file(want, home / "want.safetensors")
    return home


@pytest.fixture(scope="module")
def exported(home: Path) -> Path:
    """The folders `<name>_peft` and `<name>_merged` of each."""
    for name in TRANSFORMERS:
        source = [str(home / f"{name}.safetensors"), f"--base={home / f'{name}_base'}"]
        main(["export", *source, f"--out={home / f'{name}_peft'}", "--license=mit"])
        main(["merge", *source, f"--out={home / f'{name}_merged'}"])
    main(["export", str(home / "run"), f"--out={home / 'run_peft'}"])
    main(["merge", str(home / "run"), f"--out={home / 'run_merged'}"])
    return home


SERVE = """
import importlib.util, json, sys
for name in ("replora", "lightning_modules", "datamodules"):
    assert importlib.util.find_spec(name) is None, name
import timm, torch, transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

home = sys.argv[1]
examples = torch.load(f"{home}/examples.pt", weights_only=True)
classes = {"llama": "LlamaForCausalLM", "bart": "BartForConditionalGeneration", "vit": "ViTForImageClassification"}
outputs = {}
for name, cls in classes.items():
    cls = getattr(transformers, cls)
    for kind in ("peft", "merged"):
        if kind == "peft":
            model = PeftModel.from_pretrained(cls.from_pretrained(f"{home}/{name}_base"), f"{home}/{name}_peft")
        else:
            model = cls.from_pretrained(f"{home}/{name}_merged")
        outputs[f"{name}_{kind}"] = model.eval()(**examples[name]).logits.detach().clone()
config = json.load(open(f"{home}/run_merged/config.json"))
base = timm.create_model(config["architecture"], **config["model_args"])
base.load_state_dict(load_file(f"{home}/nano_base.safetensors"), strict=False)
models = {
    "run_peft": PeftModel.from_pretrained(base, f"{home}/run_peft"),
    "run_merged": timm.create_model(f"local-dir:{home}/run_merged", pretrained=True),
}
for name, model in models.items():
    outputs[name] = model.eval()(examples["run"]["x"]).detach().clone()
save_file(outputs, f"{home}/served.safetensors")
"""


def environment_without_our_package(folder: Path) -> Path:
    """The Python of a new virtual environment that has every installed package but ours."""
    venv.create(folder, with_pip=False, symlinks=True)
    target = next(folder.glob("lib/python*/site-packages"))
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(path).iterdir():
            if not entry.name.startswith(OWN) and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def test_stock_tools_serve_it_in_a_process_without_this_package(exported: Path, tmp_path: Path) -> None:
    torch.save(EXAMPLES, exported / "examples.pt")
    torch.manual_seed(3)  # the run's backbone has the random weights of its seed
    nano = open_run(exported / "run").backbone
    plain = replora.remove(nano.model).state_dict()
    save_file(
        {name: tensor for name, tensor in plain.items() if "head" not in name}, exported / "nano_base.safetensors"
    )
    (tmp_path / "serve.py").write_text(SERVE)
    python = environment_without_our_package(tmp_path / "venv")
    quiet = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"OMP_NUM_THREADS": "1"}
    subprocess.run([python, "serve.py", exported], cwd=tmp_path, env=quiet, check=True)
    want, served = load_file(exported / "want.safetensors"), load_file(exported / "served.safetensors")
    assert served.keys() == {f"{name}_{kind}" for name in want for kind in ("peft", "merged")}
    for name, outputs in served.items():
        torch.testing.assert_close(outputs, want[name.rpartition("_")[0]], rtol=1e-5, atol=1e-5)


def test_merged_timm_folder_knows_classes_and_preprocessing(exported: Path) -> None:
    config = json.loads((exported / "run_merged" / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)]
    assert config["pretrained_cfg"]["crop_mode"] == "squash"
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    card = (exported / "run_merged" / "README.md").read_text()
    assert "test/accuracy" in card
    assert 'library_name: "timm"' in card
    assert "timm.create_model" in card
    assert 'license: "mit"' in (exported / "vit_peft" / "README.md").read_text()


def test_deployed_file_of_a_run(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.safetensors"
    main(["export", str(home / "run"), "--format=adapter", f"--out={out}"])
    assert out.stat().st_size < (home / "run" / "adapter.safetensors").stat().st_size
    model = replora.remove(open_run(home / "run").model)
    replora.load_adapter(model, out)
    with torch.no_grad():
        outputs = model(EXAMPLES["run"]["x"])
    want = load_file(home / "want.safetensors")["run"]
    torch.testing.assert_close(outputs, want, rtol=1e-5, atol=1e-5)
    assert "is not overwritten" in refused(capsys, "export", str(home / "run"), "--format=adapter", f"--out={out}")


def test_another_base_of_equal_shapes_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = str(home / "llama.safetensors"), f"--out={tmp_path / 'out'}"
    torch.manual_seed(1)
    hf_llama().save_pretrained(tmp_path / "other")
    for verb in ("export", "merge"):
        error = refused(capsys, verb, file, out, f"--base={tmp_path / 'other'}")
        assert "with other weights: their fingerprint is" in error
    error = refused(capsys, "merge", file, out, f"--base={home / 'vit_base'}")
    assert "llama.safetensors was trained on a model of the class LlamaForCausalLM, but this base is a ViTFor" in error
    assert "It was trained on a model (LlamaForCausalLM)" in refused(capsys, "merge", file, out)


def test_a_base_in_another_type_is_the_same_base(home: Path, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(home / "llama_base", dtype=torch.bfloat16)
    replora.inject(model, replora.RepLoRAConfig(rank=2))
    file = replora.save_adapter(model, tmp_path / "a.safetensors")
    main(["merge", str(file), f"--base={home / 'llama_base'}", f"--out={tmp_path / 'merged'}"])  # of float32
    replora.remove(model).save_pretrained(tmp_path / "bf16")
    main(["merge", str(file), f"--base={tmp_path / 'bf16'}", f"--out={tmp_path / 'merged16'}"])


def test_a_base_without_some_weights_or_damaged_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(home / "llama_base", tmp_path / "part")
    state = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "layers.1" not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    source = ("merge", str(home / "llama.safetensors"), f"--base={base}", f"--out={tmp_path / 'out'}")
    assert "lacks 9 of the weights of LlamaForCausalLM, such as model.layers.1." in refused(capsys, *source)
    (base / "model.safetensors").write_bytes(b"abc")
    assert "transformers cannot open it" in refused(capsys, *source)
    assert not (tmp_path / "out").exists()


def test_a_base_without_the_head_that_the_adapter_has(home: Path, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification, ViTModel

    model = ViTForImageClassification.from_pretrained(home / "vit_base")
    model.vit.save_pretrained(tmp_path / "headless")
    assert json.loads((tmp_path / "headless" / "config.json").read_text())["architectures"] == [ViTModel.__name__]
    base = f"--base={tmp_path / 'headless'}"
    main(["merge", str(home / "vit.safetensors"), base, f"--out={tmp_path / 'merged'}"])
    opened = ViTForImageClassification.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(call(opened, EXAMPLES["vit"]), load_file(home / "want.safetensors")["vit"])


def test_a_quantized_base_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = load_transformers(str(home / "llama_base"))
    attention = opened.model.layers[0].self_attn
    attention.q_proj = Int8Linear(attention.q_proj)
    monkeypatch.setattr("replora.export.trained.load_transformers", lambda *_: opened)
    source = (str(home / "llama.safetensors"), f"--base={home / 'llama_base'}", f"--out={tmp_path / 'out'}")
    assert "is quantized (torch.int8)" in refused(capsys, "merge", *source)
    assert list(tmp_path.iterdir()) == []


def test_a_timm_base_by_its_name(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter file of a run alone, deployed, exported and merged; what its run knew is still known."""
    options = ["--config=quickstart.yaml", "--config=adapter/replora.yaml", "--data.shots=2", "--data.batch_size=8"]
    options += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", f"--run_dir={tmp_path / 'run'}"]
    main(["fit", *options])
    file = tmp_path / "run" / "adapter.safetensors"
    main(["export", str(file), "--base=vit_nano", "--format=adapter", f"--out={tmp_path / 'small.safetensors'}"])
    small = str(tmp_path / "small.safetensors")
    assert read_metadata(small).keys() >= {"backbone", "data", "trained_on", "metrics"}
    main(["merge", small, "--base=vit_nano", f"--out={tmp_path / 'merged'}"])
    card = (tmp_path / "merged" / "README.md").read_text()
    for text in ("digits, 20 training items", "val/accuracy", 'base_model: "vit_nano"'):
        assert text in card
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["label_names"][3] == "3"
    x = EXAMPLES["run"]["x"]
    opened = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    torch.testing.assert_close(opened(x), open_run(tmp_path / "run").model(x), rtol=1e-4, atol=1e-5)
    out = f"--out={tmp_path / 'out'}"
    random = str(home / "run" / "adapter.safetensors")  # its backbone had random weights
    assert "with other weights" in refused(capsys, "merge", random, "--base=vit_nano", out)
    assert "has no head ('head')" in refused(capsys, "merge", str(home / "llama.safetensors"), "--base=vit_nano", out)
    error = refused(capsys, "merge", small, "--base=vit_nanoo", out)
    assert "timm has no model of that name" in error
    assert "replora.merge_and_unload(model)" in error


def test_mistakes(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"--out={tmp_path / 'out'}"
    file, run = str(home / "llama.safetensors"), str(home / "run")
    assert "Name that: --base FOLDER" in refused(capsys, "export", file, out)
    assert "which names its own backbone" in refused(capsys, "merge", run, out, f"--base={home}")
    assert "no fit.yaml" in refused(capsys, "merge", str(tmp_path), out)
    for missing in ("none", "none.safetensors"):
        assert "There is no adapter file and no run" in refused(capsys, "merge", str(tmp_path / missing), out)
    assert "transformers cannot open it" in refused(capsys, "export", file, out, f"--base={tmp_path}")
    error = refused(capsys, "export", file, out, f"--base={home / 'bart_base'}")
    assert "llama.safetensors" in error
    replora.export_peft(open_run(home / "run").model, tmp_path / "peft")
    assert "replora.import_peft(model, folder)" in refused(capsys, "merge", str(tmp_path / "peft"), out)
    shutil.rmtree(tmp_path / "peft")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    inside = f"--out={tmp_path / 'full' / 'mine.txt' / 'x'}"
    for line in (["merge", run], ["export", run], ["export", run, "--format=adapter"]):
        assert "mine.txt is a file, and a folder is expected" in refused(capsys, *line, inside)
    assert "is not overwritten" in refused(capsys, "merge", run, f"--out={tmp_path / 'full'}")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full"]


def test_a_merge_that_changes_the_outputs_writes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_trained(home / "run")
    first = next(iter(trained.model.replora.updates))
    honest = first.merge

    def wrong() -> None:
        honest()
        first.base.data.mul_(1.01)

    monkeypatch.setattr(first, "merge", wrong)
    with pytest.raises(ExportError, match="differ from the unmerged one's by"):
        merge(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


BF16 = {"replora": replora.RepLoRAConfig(rank=2, hidden=4), "peft_lora": replora.PeftMethodConfig("lora", rank=2)}


@pytest.mark.parametrize(
    ("method", "forgotten"),
    [*((method, how) for method in BF16 for how in ("all", "none")), ("replora", "one")],
)
def test_in_16_bits_too_an_update_that_is_not_merged_is_found(
    method: str, forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = replora.inject(hf_llama().bfloat16().eval(), BF16[method])
    disturb(model)
    small = [p for name, p in model.named_parameters() if "mlp_B.V" in name or "lora_B" in name]
    with torch.no_grad():  # as after a short training
        for parameter in small:
            parameter.mul_(0.02)
    if method == "peft_lora":
        for layer in peft_layers(model).values() if forgotten == "all" else ():
            monkeypatch.setattr(layer, "merge", lambda layer=layer: layer.merged_adapters.append("default"))
            monkeypatch.setattr(layer, "unmerge", lambda layer=layer: layer.merged_adapters.clear())
    else:
        updates = model.replora.updates
        for update in {"all": updates, "one": updates[-1:], "none": []}[forgotten]:
            aside = SetAside(update.owner, {"weight": update.base})
            monkeypatch.setattr(update, "merge", lambda update=update, aside=aside: setattr(update, "aside", aside))
    if forgotten == "none":
        assert merge(Trained(model, None), tmp_path / "out") < 0.05
        return
    with pytest.raises(ExportError, match=r"is not the sum of|differ from the unmerged one's by"):
        merge(Trained(model, None), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_16_bit_backbone_is_merged_without_rounding_where_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = hf_llama().bfloat16().eval()
    model.save_pretrained(tmp_path / "base")
    replora.inject(model, BF16["replora"])
    disturb(model)
    replora.save_adapter(model, tmp_path / "a.safetensors")
    source = ["merge", str(tmp_path / "a.safetensors"), f"--base={tmp_path / 'base'}"]
    main([*source, f"--out={tmp_path / 'rounded'}"])
    assert "--dtype float32" in capsys.readouterr().out
    main([*source, f"--out={tmp_path / 'exact'}", "--dtype=float32"])
    assert "rounding" not in capsys.readouterr().out
    rounded, exact = (type(model).from_pretrained(tmp_path / name, dtype="auto") for name in ("rounded", "exact"))
    assert (rounded.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    want = call(model.float(), EXAMPLES["llama"])
    torch.testing.assert_close(call(exact.eval(), EXAMPLES["llama"]), want, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_is_copied_where_the_base_has_one(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TRANSFORMERS:
        assert not [f.name for f in (exported / f"{name}_merged").iterdir() if "token" in f.name or "vocab" in f.name]
    write_tiny_llama(tmp_path / "base")
    model = replora.inject(load_transformers(str(tmp_path / "base")), replora.RepLoRAConfig(rank=2))
    source = [str(replora.save_adapter(model, tmp_path / "a.safetensors")), f"--base={tmp_path / 'base'}"]
    main(["merge", *source, f"--out={tmp_path / 'merged'}"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer("hello").input_ids == AutoTokenizer.from_pretrained(tmp_path / "base")("hello").input_ids

    def missing(*_args, **_kwargs):
        raise ImportError("needs sentencepiece")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.warns(UserWarning, match="AutoTokenizer of .* was not copied .needs sentencepiece."):
        main(["merge", *source, f"--out={tmp_path / 'again'}"])
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_a_timm_model_without_a_name_is_not_saved_as_vit_nano(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = replora.inject(timm_vit().eval(), replora.RepLoRAConfig(rank=2), also_train=["head"])
    merge(Trained(model, None), tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    assert "load_state_dict" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("method", ["lora", "linear", "dora", "bitfit", "linear_probe", "full"])
def test_every_method_of_a_run_merges(method: str, tmp_path: Path) -> None:
    small = ["--config=quickstart.yaml", f"--config=adapter/{method}.yaml", "--model.pretrained=false"]
    small += ["--data.shots=2", "--data.batch_size=8", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    main(["fit", *small, "--trainer.limit_test_batches=1", f"--run_dir={tmp_path / 'run'}"])
    main(["merge", str(tmp_path / "run"), f"--out={tmp_path / 'merged'}"])
    opened = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    x = EXAMPLES["run"]["x"]
    with torch.no_grad():
        torch.testing.assert_close(opened(x), open_run(tmp_path / "run").model(x), rtol=1e-4, atol=1e-5)


def test_a_model_of_no_known_library(tmp_path: Path) -> None:
    from torchvision.models import SwinTransformer

    model: nn.Module = SwinTransformer([2, 2], 16, [2, 1], [2, 4], window_size=[4, 4], num_classes=5).eval()
    replora.inject(model, replora.RepLoRAConfig(rank=2, hidden=4), also_train=["head"])
    with pytest.raises(ExportError, match="No input is known for SwinTransformer"):
        merge(Trained(model, None), tmp_path / "out")


def test_help_names_both_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    assert "replora-cli merge runs/NAME" in shown
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "--license" in capsys.readouterr().out
    assert sys.modules["replora"].__version__
