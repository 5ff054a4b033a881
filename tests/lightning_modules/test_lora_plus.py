"""LoRA+: B has its own rate, in the optimizer, in the record and from the command line."""

from __future__ import annotations

import pytest
import torch

from lightning_modules import LoRAPlus
from replora.adapters.container import adapters_of
from replora.cli.main import main
from replora.errors import RepLoRAError
from replora.results import read_results
from replora.runs import open_run


def test_a_step_of_b_is_that_of_adamw_at_the_higher_rate():
    A, B, bias = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    groups = [{"params": [A, B]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = LoRAPlus(groups, lr=0.01, ratio=8.0, weight_decay=0.5)
    optimizer.raise_rate([B])
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (0.01, 0.5, 1),
        (0.01, 0.0, 1),
        (0.08, 0.5, 1),
    ]
    for parameter in (A, B, bias):
        parameter.grad = torch.ones(2, 3)
    optimizer.step()
    torch.testing.assert_close(1 - A, torch.full((2, 3), 0.015), msg="0.01 of the step, 0.005 of the decay")
    torch.testing.assert_close(1 - B, torch.full((2, 3), 0.12))
    torch.testing.assert_close(1 - bias, torch.full((2, 3), 0.01))


def test_what_it_cannot_do_is_said():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(RepLoRAError, match=r"ratio: 0.0 is out of range"):
        LoRAPlus([weight], ratio=0.0)
    with pytest.raises(RepLoRAError, match="has no B that trains"):
        LoRAPlus([weight]).raise_rate([])


def test_a_run(tmp_path, monkeypatch):
    """A and the head have half the rate of quickstart.yaml, which the record names, and B has 16 times that."""
    monkeypatch.chdir(tmp_path)
    options = ["--model.pretrained=false", "--data.shots=1", "--trainer.max_epochs=2", "--trainer.limit_test_batches=1"]
    main(["fit", "--config=quickstart.yaml", "--config=adapter/lora_plus.yaml", "--run_dir=run", *options])
    recorded = read_results(tmp_path / "run")["fit"]["optimizer"]
    assert (recorded["class"], recorded["lr"]) == ("LoRAPlus", 0.005)
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=False)["optimizer_states"][0]
    rates = [group["initial_lr"] for group in state["param_groups"]]
    assert rates[-1] == pytest.approx(16 * rates[0])
    assert rates[0] == 0.005
    (bank,) = adapters_of(open_run(tmp_path / "run").model).factor_banks()
    assert len(state["param_groups"][-1]["params"]) == len(bank.last_matrices())
