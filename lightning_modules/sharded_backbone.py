"""Distributed training with the frozen weights sharded across processes."""

from __future__ import annotations

import logging

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from replora.errors import RepLoRAError

log = logging.getLogger(__name__)


class ShardedBackboneStrategy(DDPStrategy):
    """Data-parallel training in which each process holds a shard of the frozen weights (PyTorch's FSDP2).

    Every block of the backbone is gathered for its forward or backward pass and freed afterwards. Adapter and head are
    small: every process holds all of them, and their gradients are averaged as in DDP. Checkpoints, optimizer state
    and `adapter.safetensors` are therefore those of any other run, and nothing is gathered to write them.

    Raises:
        RepLoRAError: Nothing is frozen, as in full fine-tuning.
    """

    strategy_name = "sharded_backbone"

    def model_to_device(self) -> None:
        super().model_to_device()
        blocks = _blocks(self.lightning_module)
        if any(isinstance(block, FSDPModule) for block in blocks):
            return  # a test after the fit
        frozen = [block for block in blocks if any(not p.requires_grad for p in block.parameters())]
        if not frozen:
            raise RepLoRAError(
                "trainer/fsdp.yaml shards frozen weights, but this method trains all of them. Use --config "
                "trainer/deepspeed.yaml or trainer/ddp.yaml, or a method with a frozen backbone."
            )
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        for block in frozen:
            trained = {p for p in block.parameters() if p.requires_grad}
            fully_shard(block, mesh=mesh, ignored_params=trained)
        log.info("%d blocks of the backbone are sharded across %d processes", len(frozen), self.world_size)

    def configure_ddp(self) -> None:
        """DDP for the trainable parameters; it must not touch the shards."""
        module = self.model
        assert module is not None
        names = [name for name, p in module.named_parameters() if not p.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
        super().configure_ddp()


def _blocks(module: nn.Module | None) -> list[nn.Module]:
    """The transformer blocks: members of the module lists and sequences with the most frozen parameters.

    Trainable parameters do not count: the adapter's own lists may be larger than the blocks of a small backbone.
    """
    if module is None:
        return []
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential) and len(m) > 1]
    weights = [(sum(p.numel() for p in m.parameters() if not p.requires_grad), m) for m in lists]
    largest = max((weight for weight, _ in weights), default=0)
    # Swin's stages lie in one sequence and their blocks in others; the stages are then sharded.
    return [block for weight, m in weights if weight == largest for block in m]
