"""The loader and the training samplers of the datamodules."""

from __future__ import annotations

import gc
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
            # The error of a loader process contains its traceback; the message comes last.
            message = str(error).rpartition(f"{type(error).__qualname__}: ")[2].strip()
            remedy = self.corrupt_image_remedy if isinstance(error, CorruptImageError) else ""
            raise type(error)(f"{message}{remedy}") from error
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise LoaderWorkerError(
                f"A loader process died ({str(error).splitlines()[0]}), usually because memory ran out. Decrease "
                "--data.num_workers (0 loads in the training process) or --data.batch_size, or give the container "
                "more shared memory. The last checkpoint is complete: continue with --ckpt_path last."
            ) from error


def start_worker(_worker: int) -> None:
    """Set up a loader process.

    It writes to the streams of the system, because a thread of the main process may lock those of the progress display.
    It ignores Ctrl-C, which a terminal sends to all processes: the main process ends the run. Its garbage collector
    leaves alone what the main process made: visiting these objects would copy their memory.
    """
    gc.freeze()
    release_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainSampler(DistributedSampler[Any]):
    """The training examples of one process in the random order of the epoch, without those seen before a resumed run.

    Args:
        dataset: Training set.
        world: Number of processes (>= 1).
        rank: Rank of this process, 0 to `world` - 1.
        seed: Random seed (>= 0) of the order.
        drop_last: Whether to drop examples so that all processes have equally many; otherwise some are repeated.
        seen: Function that returns, when an epoch begins, how many of its examples this process has trained on.
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
    """Training texts in a random order in which each global batch contains texts of similar lengths.

    The random order of an epoch is cut into stretches of at most 50 batches; each is sorted by length and cut into
    batches, which are shuffled. An incomplete batch is the last one of the epoch; -1 stands for padding that makes the
    shares of the processes equal.

    Args:
        lengths: Number of tokens of each text, or None to keep the random order.
        batch_size: Texts per batch and process (>= 1).
        dataset, world, rank, seed, drop_last, seen: Same as in `TrainSampler`, but the incomplete batch is dropped.
    """

    STRETCH = 50  # batches; fewer if an epoch has less than four such stretches

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
        full = len(drawn) // self.batch * self.batch
        drawn, last = drawn[:full], [] if self.drop_last else drawn[full:]
        if self.lengths is None:
            return drawn + last
        lengths = self.lengths
        stretch = self.batch * max(1, min(self.STRETCH, len(drawn) // (4 * self.batch)))
        like: list[int] = []
        for start in range(0, full, stretch):
            like += sorted(drawn[start : start + stretch], key=lambda position: lengths[position])
        batches = [like[start : start + self.batch] for start in range(0, full, self.batch)]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [position for number in order for position in batches[number]] + last
