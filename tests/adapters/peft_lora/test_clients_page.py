"""docs/peft.md, README and examples/ run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

import replora
from tests.adapters.peft_lora.test_clients import FILE, ROWS, trainer_of, words
from tests.adapters.peft_lora.test_clients_models import lora, now, unet
from tests.adapters.peft_lora.test_reparameterize import build, output
from tests.adapters.tiny_models import hf_llama

ROOT = Path(__file__).parents[3]
PAGE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "peft.md").read_text("utf-8"), flags=re.DOTALL)
README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(code: str, **names: Any) -> dict[str, Any]:
    names |= {"peft": peft, "replora": replora, "torch": torch}
    exec(compile(code, "docs/peft.md", "exec"), names)
    return names


def test_the_lines_of_the_page() -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    options = {"report_to": [], "use_cpu": True, "bf16": False, "max_steps": 3, "learning_rate": 1e-2}
    tokenizer = words()

    def trainer(*args: Any, **named: Any) -> Any:
        return trl.SFTTrainer(*args, processing_class=tokenizer, **named)

    names = run(
        PAGE[0],
        base=build(),
        SFTTrainer=trainer,
        arguments=trl.SFTConfig("out", save_strategy="no", **options),
        train_dataset=datasets.Dataset.from_list([{"text": "w1 w2 w3"}] * 8),
    )
    trained = names["model"].eval()
    stock = peft.PeftModel.from_pretrained(build(), "adapter").eval()
    assert torch.equal(output(stock), output(trained))
    assert not torch.equal(output(stock), output(build()))
    again = run(PAGE[1], base=build())["model"]
    for one, other in zip(trained.replora.parameters(), again.replora.parameters(), strict=True):
        assert torch.equal(one, other)
    groups = run(PAGE[3], model=again)["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0]


def test_the_lines_of_the_page_for_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = unet()
    model.add_adapter(lora())
    replora.reparameterize(model)
    torch.nn.init.normal_(model.replora["default"].banks[0].mlp_B.V[0])
    expected = now(model)
    run(PAGE[2], unet=model, StableDiffusionPipeline=diffusers.StableDiffusionPipeline)
    assert torch.equal(now(model), expected)
    stock = unet()
    diffusers.StableDiffusionPipeline.load_lora_into_unet(
        *diffusers.StableDiffusionPipeline.lora_state_dict("lora"), stock
    )
    assert torch.equal(now(stock), expected)


def test_the_lines_of_the_readme(tmp_path: Path) -> None:
    arguments = trainer_of(build(), tmp_path / "out").args
    assert len(README[1].splitlines()) <= 5
    names = run(README[1], base=build(), Trainer=Trainer, arguments=arguments, train_dataset=ROWS)
    stock = peft.PeftModel.from_pretrained(build(), "adapter").eval()
    assert torch.equal(output(stock), output(names["model"].eval()))


def test_the_trainer_without_peft() -> None:
    """The page's own lines, with a small Llama in the place of the one that has to be fetched."""
    hf_llama().save_pretrained("small")
    tokens = torch.arange(8)
    rows = [{"input_ids": tokens + start, "labels": tokens + start} for start in range(24)]
    names = run(PAGE[4].replace("HuggingFaceTB/SmolLM2-135M", "small"), train_dataset=rows)
    model, batch = names["model"].cpu().eval(), tokens[None]
    base = AutoModelForCausalLM.from_pretrained("small", dtype="bfloat16")
    before = base(batch).logits
    assert {p.dtype for p in model.replora.parameters()} == {torch.float32}
    assert not torch.equal(model(batch).logits, before)
    served = peft.PeftModel.from_pretrained(base, "out/peft").eval()
    torch.testing.assert_close(served(batch).logits, model(batch).logits, rtol=0.05, atol=0.05)
    assert Path("out/adapter.safetensors").is_file()


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs = {"trl_sft": "trl", "sentence_similarity": "sentence_transformers", "diffusion": "diffusers"}
    if script.stem in needs:
        pytest.importorskip(needs[script.stem])
    runpy.run_path(str(script))["main"](["--quick", "--out", "out"])
    assert Path("out", FILE).is_file()
    assert "differ" not in capsys.readouterr().out.replace("differ by 0.0\n", "")
