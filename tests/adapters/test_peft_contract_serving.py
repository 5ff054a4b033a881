"""docs/serving.md: what PEFT's users do with adapters works on the exported ones, with our numbers."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import replora
from tests.adapters.test_contract import disturb
from tests.adapters.tiny_models import hf_bart, hf_llama

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
(EXAMPLE,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "hotswap" in code]
BATCH = {"input_ids": torch.tensor([[0, 7, 9, 4, 2], [0, 8, 3, 5, 2], [0, 6, 6, 7, 2]])}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


@pytest.mark.parametrize("method", ["replora", "lora"])
@pytest.mark.parametrize("build", [hf_llama, hf_bart])
def test_the_example_gives_our_numbers(
    build: Any, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = build().eval()
    frozen = dict(base.named_parameters())
    config = replora.RepLoRAConfig(rank=2, hidden=4, alpha=6.0) if method == "replora" else replora.LoRAConfig(rank=2)
    own, sums = {}, {name: p.detach().clone() for name, p in frozen.items()}
    for seed, (name, weight) in enumerate({"birds": 0.7, "cars": 0.3}.items()):
        torch.manual_seed(seed)
        model = replora.inject(copy.deepcopy(base), config)
        disturb(model)
        own[name] = logits(model)
        replora.export_peft(model, name, base_model="base")
        for parameter, merged in replora.merge_and_unload(model).named_parameters():
            sums[parameter] += weight * (merged.detach() - frozen[parameter].detach())
    both = copy.deepcopy(base)
    both.load_state_dict(sums, strict=False)
    names: dict[str, Any] = {"base": copy.deepcopy(base), "batch": BATCH}
    exec(compile(EXAMPLE, "serving.md", "exec"), names)
    torch.testing.assert_close(names["combined"], logits(both), rtol=1e-4, atol=1e-5)
    want = [own["birds"], own["cars"], logits(base)]
    for row, one in enumerate(want):
        torch.testing.assert_close(names["mixed"][row], one[row], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(names["model"]), own["cars"], rtol=1e-4, atol=1e-5)
