"""Two processes train, save and load a reparameterized model as one process does on the batch of both.

One pair of processes runs all checks; each test reads what became of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel

import replora
from tests.adapters.peft_lora.test_reparameterize import build, wrapped

BATCH = torch.randint(97, (4, 12), generator=torch.Generator().manual_seed(3))


def start() -> nn.Module:
    """A model whose generators are not at their start, where some gradients are 0."""
    model = replora.reparameterize(wrapped()).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.replora.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5, momentum=0.9)


def train(model: Any, batch: Tensor) -> Any:
    optimizer = sgd(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model


def share(rank: int) -> Tensor:
    return BATCH[2 * rank : 2 * rank + 2]


def assert_trained(state: dict[str, Tensor], only: str = "") -> None:
    """The state is that of one process."""
    wanted = train(start(), BATCH).state_dict()
    assert state.keys() == wanted.keys()
    for name in wanted:
        value = state[name].full_tensor() if hasattr(state[name], "full_tensor") else state[name]
        if only in name:
            torch.testing.assert_close(
                value, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


def assert_saved(model: Any, state: dict[str, Tensor], folder: Path, rank: int) -> None:
    """`save_pretrained` with a gathered state writes plain LoRA, and generators that give the same A and B."""
    model.save_pretrained(folder, state_dict=state, is_main_process=rank == 0)
    dist.barrier()
    wanted = train(start(), BATCH).eval()
    stock = peft.PeftModel.from_pretrained(build(), folder).eval()
    torch.testing.assert_close(stock(input_ids=BATCH).logits, wanted(input_ids=BATCH).logits, rtol=1e-4, atol=1e-5)
    again = peft.PeftModel.from_pretrained(build(), folder, is_trainable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replora.reparameterize(again, generators=folder)
    for one, other in zip(wanted.replora.parameters(), again.replora.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def assert_gathered_and_loaded(model: nn.Module, folder: Path, rank: int) -> None:
    """By torch.distributed.checkpoint, complete and in shares."""
    for complete in (True, False):
        options = StateDictOptions(full_state_dict=complete)
        state = get_model_state_dict(model, options=options)
        if complete:
            assert_trained(state)
            assert_saved(getattr(model, "module", model), state, folder, rank)
        state = {name: tensor.detach().clone() for name, tensor in state.items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        set_model_state_dict(model, state, options=options)
        assert_trained(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def ddp(rank: int, folder: Path) -> None:
    model = train(DistributedDataParallel(start()), share(rank)).module
    assert_trained(model.state_dict())
    assert_saved(model, model.state_dict(), folder, rank)


def checkpointing(rank: int, _folder: Path) -> None:
    for reentrant in (False, True):
        model: Any = start()
        model.is_loaded_in_8bit = True  # else the function leaves checkpointing to the program
        peft.prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        assert model.base_model.model.is_gradient_checkpointing
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("replora.")  # the call froze all
        if reentrant:
            with pytest.raises(replora.RepLoRAError, match="use_reentrant=False"):
                DistributedDataParallel(model)(input_ids=share(rank), labels=share(rank))
        train(DistributedDataParallel(model, static_graph=reentrant), share(rank))
        assert_trained(model.state_dict(), "replora.")


def fsdp1(rank: int, folder: Path) -> None:
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = start()
    policy = fsdp_auto_wrap_policy(model)
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
    )
    train(sharded, share(rank))
    with pytest.raises(replora.RepLoRAError, match="state_dict="):
        model.save_pretrained(folder)
    assert_gathered_and_loaded(sharded, folder, rank)


def fsdp2(rank: int, folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    model = start()
    for block in model.base_model.model.model.layers:
        fully_shard(block)
    train(fully_shard(model), share(rank))
    with pytest.raises(replora.RepLoRAError, match="state_dict="):
        model.save_pretrained(folder)
    assert_gathered_and_loaded(model, folder, rank)


def accelerate_fsdp2(rank: int, folder: Path) -> None:
    """What accelerate does with FSDP2: its `Accelerator` refuses a CPU, so its functions are called here."""
    from accelerate import FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model, load_fsdp_model, save_fsdp_model
    from peft.utils.other import fsdp_auto_wrap_policy

    PartialState(cpu=True)
    for kind in ("FULL_STATE_DICT", "SHARDED_STATE_DICT"):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            cpu_ram_efficient_loading=True,
            state_dict_type=kind,
        )
        accelerator = SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            mixed_precision="no",
            is_main_process=rank == 0,
            process_index=rank,
            num_processes=2,
            device=torch.device("cpu"),
            is_fsdp2=True,
            wait_for_everyone=dist.barrier,
        )
        model = start()
        plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)
        model = train(fsdp2_prepare_model(accelerator, model), share(rank))
        assert_trained(model.state_dict())
        for adapter_only in (False, True):
            place = str(folder / f"{kind}-{adapter_only}")
            save_fsdp_model(plugin, accelerator, model, place, adapter_only=adapter_only)
            dist.barrier()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if ".V." in name or not adapter_only:
                        parameter.zero_()
            load_fsdp_model(plugin, accelerator, model, place, adapter_only=adapter_only)
            # In shares, an adapter alone has no generators: they are solved for.
            solved = adapter_only and kind == "SHARDED_STATE_DICT"
            assert_trained(model.state_dict(), "lora_" if solved else "")


def deepspeed(rank: int, folder: Path) -> None:
    library = pytest.importorskip("deepspeed")
    communication: Any = importlib.import_module("deepspeed.comm.torch")
    communication.build_shm_op = lambda: None  # a kernel that takes minutes to compile
    model = start()
    engine, *_ = library.initialize(
        model=model,
        optimizer=sgd(model),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for _ in range(2):
        engine.backward(engine(input_ids=share(rank), labels=share(rank)).loss)
        engine.step()
    assert_trained(model.state_dict())
    engine.save_checkpoint(str(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    engine.load_checkpoint(str(folder))
    assert_trained(model.state_dict())
    assert_saved(model, model.state_dict(), folder / "saved", rank)


CHECKS: tuple[Callable[[int, Path], None], ...] = (
    ddp,
    checkpointing,
    fsdp1,
    fsdp2,
    accelerate_fsdp2,
    deepspeed,
)


def work(rank: int, folder: Path) -> None:
    """Run all checks in one of two processes. One that fails in both leaves the next ones alone."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    for check in CHECKS:
        result = ""
        try:
            check(rank, folder / check.__name__)
        except pytest.skip.Exception as skipped:
            result = f"skip {skipped}"
        except BaseException:
            result = traceback.format_exc()
        (folder / f"{check.__name__}-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        context = torch.multiprocessing.start_processes(work, (folder,), 2, join=False)
        while not context.join(timeout=300):
            pass
    return folder


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_two_processes_equal_one(check: str, results: Path) -> None:
    for rank in (0, 1):
        found = json.loads((results / f"{check}-{rank}.json").read_text())
        if found.startswith("skip"):
            pytest.skip(found.removeprefix("skip "))
        assert not found, found


def test_states_of_an_embedding_are_found() -> None:
    model = replora.reparameterize(wrapped(("embed_tokens", "q_proj")))
    state = get_model_state_dict(model)
    assert state.keys() == model.state_dict().keys()
    other = replora.reparameterize(wrapped(("embed_tokens", "q_proj"), seed=1))
    set_model_state_dict(other, state, options=StateDictOptions(full_state_dict=True))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name]), name
