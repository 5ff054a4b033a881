"""The loader and the training samplers of the datamodules: right epochs, resuming inside an epoch, clear errors."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from replora.datasets.common.augment import PerEpoch
from replora.datasets.common.workers import release_streams
from replora.datasets.errors import CorruptImageError, LoaderWorkerError
from replora.datasets.samples import PADDING_INDEX
from replora.errors import RepLoRAError


class EpochLoader(DataLoader[Any]):
    """A loader whose epoch begins with its first batch, not with `iter()`.

    Lightning calls `iter()` before a resumed run knows its epoch, and loader processes would then at once read the
    examples of epoch 0.

    Raises:
        LoaderWorkerError: A loader process was killed, for example because memory ran out.
    """

    corrupt_image_remedy = ""  # what else can be done about an image that cannot be read

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except RepLoRAError as error:
            # A loader process hands its error over inside a traceback; the sentence for the reader comes last.
            message = str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
            remedy = self.corrupt_image_remedy if isinstance(error, CorruptImageError) else ""
            raise type(error)(f"{message}{remedy}") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise LoaderWorkerError(
                f"A process that loads data died ({str(error).splitlines()[0]}). Most often memory ran out: lower "
                "--data.num_workers (0 loads in the training process) or --data.batch_size, or give the container "
                "more shared memory. The last checkpoint is whole; go on with --ckpt_path last."
            ) from error


def start_worker(_worker: int) -> None:
    """Set up a loader process.

    It writes to the streams of the system: those of the progress display may be locked by a thread that only the main
    process has. And it outlives Ctrl-C, which a terminal sends to all processes: the main one ends the run.
    """
    release_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
        """Positions, or (epoch, position) for a `PerEpoch` set: loader processes know the epoch from nothing else."""
        positions = list(super().__iter__())[self.seen() :]
        if isinstance(self.dataset, PerEpoch):
            return ((self.epoch, position) for position in positions)
        return iter(positions)


class LengthSampler(TrainSampler):
    """Training texts in a random order in which each batch of all processes together holds texts of like lengths.

    The random order of an epoch is cut into stretches of at most 50 batches; each is sorted by length and cut into
    batches, and these are shuffled. What fills no whole batch is the last one of the epoch; where the processes cannot
    share it evenly, the position -1 stands for padding.

    Args:
        lengths: Tokens of each text; None keeps the random order as it is.
        batch_size: Texts per batch and process.
        dataset, world, rank, seed, drop_last, seen: As for `TrainSampler`; dropped is the incomplete batch.
    """

    STRETCH = 50  # batches; fewer where an epoch has not four such stretches

    def __init__(
        self,
        lengths: Sequence[int] | None,
        batch_size: int,
        dataset: Dataset[Any],
        world: int,
        rank: int,
        seed: int,
        drop_last: bool,
        seen: Callable[[], int],
    ) -> None:
        super().__init__(dataset, world, rank, seed, drop_last, seen)
        self.lengths = lengths
        self.batch = batch_size * world

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        if not self.drop_last:
            order += [PADDING_INDEX] * (-len(order) % self.num_replicas)
        return iter(order[self.rank :: self.num_replicas][self.seen() :])

    def _order(self) -> list[int]:
        """The epoch's positions for all processes together, batch after batch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        size = len(self.dataset)  # type: ignore[arg-type]
        drawn: list[int] = torch.randperm(size, generator=generator).tolist()
        whole = len(drawn) // self.batch * self.batch
        drawn, last = drawn[:whole], [] if self.drop_last else drawn[whole:]
        if self.lengths is None:
            return drawn + last
        lengths = self.lengths
        stretch = self.batch * max(1, min(self.STRETCH, len(drawn) // (4 * self.batch)))
        like: list[int] = []
        for start in range(0, whole, stretch):
            like += sorted(drawn[start : start + stretch], key=lambda position: lengths[position])
        batches = [like[start : start + self.batch] for start in range(0, whole, self.batch)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [position for number in order for position in batches[number]] + last
