"""The loader and the training sampler of every datamodule: right epochs, resuming inside an epoch, clear errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from replora.datasets import Augmented
from replora.datasets.errors import LoaderWorkerError
from replora.errors import RepLoRAError


class EpochLoader(DataLoader[Any]):
    """A loader whose epoch begins with its first batch, not with `iter()`.

    Lightning calls `iter()` before a resumed run knows its epoch, and loader processes would then at once read the
    examples of epoch 0.

    Raises:
        LoaderWorkerError: A loader process was killed, for example because memory ran out.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except RepLoRAError as error:
            # A loader process hands its error over inside a traceback; the sentence for the reader comes last.
            message = str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
            raise type(error)(message) from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise LoaderWorkerError(
                f"A process that loads data died ({str(error).splitlines()[0]}). Most often memory ran out: lower "
                "--data.num_workers (0 loads in the training process) or --data.batch_size, or give the container "
                "more shared memory. The last checkpoint is whole; go on with --ckpt_path last."
            ) from error


class TrainSampler(DistributedSampler[Any]):
    """The training examples of one process in the random order of the epoch, without those seen before a resumed run.

    Args:
        dataset: The training set.
        world: The number of processes.
        rank: Of this process.
        seed: Of the order.
        drop_last: Whether to drop examples so that all processes have equally many; otherwise some are repeated.
        seen: Tells when an epoch begins how many examples of it this process has trained on already.
    """

    def __init__(
        self, dataset: Dataset[Any], world: int, rank: int, seed: int, drop_last: bool, seen: Callable[[], int]
    ) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.seen = seen

    def __iter__(self) -> Iterator[Any]:
        """Positions, or (epoch, position) for `Augmented` images: loader processes know the epoch from nothing else."""
        positions = list(super().__iter__())[self.seen() :]
        if isinstance(self.dataset, Augmented):
            return ((self.epoch, position) for position in positions)
        return iter(positions)
