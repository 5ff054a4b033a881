"""The base of all benchmarks: protocols, low-data subsets, batches of any number of processes, exact resuming."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.loader import EpochLoader, TrainSampler, start_worker
from datamodules.split_lists import SplitLists
from replora.datasets.common.subsample import Fold, check_subset_options, folds_of, parse_fold, subsample_indices
from replora.datasets.errors import ProtocolError
from replora.errors import RepLoRAError, nearest
from replora.memory import usable_cpus

Split = Literal["train", "val", "trainval", "test"]
# What may change a measurement in addition to the list of the split, among the entries of `describe`.
IDENTITY = (
    *("dataset", "task", "group", "track", "protocol", "fold", "official_split", "root"),
    *("image_size", "interpolation", "framing", "upright", "background", "normalization", "clips", "skip_corrupt"),
    *("preset", "tokenizer", "cutoff", "test_items", "prompts", "truncation_side", "feature_size"),
)
Protocol = Literal["tune", "final", "holdout"]


class BaseDataModule(LightningDataModule, ABC):
    """One benchmark under the protocols of this table.

    | protocol  | trains on   | validates on | tests on | predicts |
    |-----------|-------------|--------------|----------|----------|
    | `tune`    | train       | val          | refused  | val      |
    | `final`   | train + val | nothing      | test     | test     |
    | `holdout` | train       | val          | test     | test     |

    Options are selected under `tune`; then `final` trains again on everything and tests at the last epoch. `holdout`
    shows a learning curve and a test at the last epoch, for demonstrations; published rows use `final`. Selection by
    test accuracy is not offered.

    A subclass builds the data sets of the splits (`build_split`) and the padding of evaluations that processes share
    (`padding_of`).

    Args:
        batch_size: Training examples per batch and process (>= 1). Two processes with 32 see the batches of one with
            64.
        eval_batch_size: Examples per batch and process in evaluations (>= 1). Default: twice `batch_size`; fewer for
            video clips; `batch_size` for vision and language.
        num_workers: Loader processes per training process (>= 0). Default: none for data held in memory; otherwise the
            usable CPU cores divided by the devices, at most 8.
        train_fraction: Fraction of the training examples to use, in (0, 1]. Subsets are stratified, and nested for one
            `subset_seed`.
        shots: Training examples per class, or per task of commonsense (>= 1), instead of a fraction.
        subset_seed: Random seed (>= 0) that chooses the examples of a fraction or of shots. Default: the seed of the
            run.
        protocol: `tune` trains on train and validates on val, to select options; `final` trains on train and val
            together, then tests; `holdout` trains on train, validates on val, then tests.
        drop_last: Whether to drop the last, incomplete training batch of an epoch. A training set smaller than one
            batch is always one batch.
        shuffle_seed: Random seed (>= 0) for the order of the training examples and their augmentation, which change
            every epoch. Default: the seed of the run.
        fold: `i/k`, such as `2/5`, for cross-validation under `tune`: of the examples that `final` trains on, validate
            on the i-th of k stratified parts, drawn by `subset_seed`, and train on the others. `2/5@3` divides the same
            examples by the seed 3 instead.

    Raises:
        RepLoRAError: An option is out of its range, or data are missing or wrong (from `setup`, before the first
            batch).
    """

    disjoint_splits = True  # whether splits that share an example are refused
    given_validation = False  # whether validation was chosen by hand, so that folds should not mix it with others

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        shots: int | None = None,
        subset_seed: int | None = None,
        protocol: Protocol = "final",
        drop_last: bool = True,
        shuffle_seed: int | None = None,
        fold: str | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        at_least(0, num_workers=num_workers, subset_seed=subset_seed, shuffle_seed=shuffle_seed)
        one_of(get_args(Protocol), protocol=protocol)
        # The default of train_fraction takes all examples and does not contradict shots.
        self._fraction = None if train_fraction == 1 else train_fraction
        check_subset_options(self._fraction, shots)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or self.default_eval_batch_size()
        self.num_workers = num_workers
        self.train_fraction = train_fraction
        self.shots = shots
        self._seeds = {"subset_seed": subset_seed, "shuffle_seed": shuffle_seed}
        self.subset_seed = subset_seed or 0
        self.protocol: Protocol = protocol
        self.fold = None if fold is None else parse_fold(fold)
        if fold is not None and protocol != "tune":
            raise ProtocolError(f"fold={fold} is for the protocol 'tune', but this is {protocol!r}. Leave one out.")
        self.drop_last = drop_last
        self.shuffle_seed = shuffle_seed or 0
        self.train_indices: list[int] | None = None
        self._splits: dict[str, Dataset[Any]] = {}
        self.lists = SplitLists()
        self._own_classes: list[str] | None = None  # set while `class_names` are those of the run that is measured
        self._run_labels: Tensor | None = None  # label of these data -> label of the run that is measured

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        """Check that the folders of the data are there, at no cost: before the weights of a large model are loaded.

        Classes that look for them when they are constructed, which is before the model is, need no other check.

        Args:
            options: Arguments of the constructor.

        Raises:
            DatasetNotFoundError: One is missing.
        """

    def use_seed(self, seed: int) -> None:
        """Use the seed of a run as the seeds that were not given. Call it before `setup`."""
        for name, given in self._seeds.items():
            if given is None:
                setattr(self, name, seed)

    def default_eval_batch_size(self) -> int:
        """Examples per batch and process in evaluations."""
        return 2 * self.batch_size

    @abstractmethod
    def build_split(self, split: Split) -> Dataset[Any]:
        """The data set of a split, or the subset of `train_split`; raise on whatever is wrong."""

    @abstractmethod
    def padding_of(self, sample: Any) -> Any:
        """Padding like `sample`, which no loss and no metric counts."""

    def describe(self) -> dict[str, Any]:
        """Everything about the data that a result depends on, as JSON values.

        `train_indices` are the positions of the training subset in the list of its split. The sizes are those of the
        splits that `setup` has built.
        """
        return {
            "dataset": type(self).__name__.removesuffix("DataModule"),
            "protocol": self.protocol,
            "train_fraction": self.train_fraction,
            "shots": self.shots,
            "subset_seed": self.subset_seed,
            "shuffle_seed": self.shuffle_seed,
            **({"fold": str(self.fold)} if self.fold else {}),  # absent in earlier results
            "split_sizes": {name: length_of(dataset) for name, dataset in self._splits.items()},
            "train_indices": self.train_indices,
            "train_size": self.train_size(),
            "class_names": list(getattr(self, "class_names", [])) or None,
            "splits": {
                name: {"size": length_of(dataset), "sha256": self.lists.sha256(name)}
                for name, dataset in self._splits.items()
            },
        }

    def train_size(self) -> int | None:
        """The number of training examples in use; None before `setup` has built them."""
        dataset = self._splits.get(self.train_split)
        return None if dataset is None else length_of(dataset)

    def identity(self, split: str) -> dict[str, Any]:
        """The identity of the data of a split in a measurement, as JSON values (docs/results.md)."""
        described = self.describe()
        classes = described.get("class_names")
        return {
            "split": split,
            **described["splits"].get(split, {}),
            "classes_sha256": hashlib.sha256("\n".join(classes).encode()).hexdigest() if classes else None,
            **{name: described[name] for name in IDENTITY if name in described},
        }

    # --- class names of the run that is measured

    @property
    def own_classes(self) -> list[str]:
        """Names of the classes in the order of the data's own labels."""
        return list(getattr(self, "class_names", [])) if self._own_classes is None else self._own_classes

    def map_labels_to(self, class_names: Sequence[str]) -> None:
        """Map labels to `class_names`, the classes of the run that is measured, which may have another order.

        Raises:
            RepLoRAError: The run does not know a class of the data.
        """
        own = self.own_classes
        if not own:
            return
        places = {name: place for place, name in enumerate(class_names)}
        if unknown := [name for name in own if name not in places]:
            raise RepLoRAError(
                f"The run was trained on other classes than those of the data: it does not know {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}. {nearest(unknown[0], places)} Measure "
                "it on data with its own classes."
            )
        self._own_classes = own
        self._run_labels = None if own == list(class_names) else torch.tensor([places[name] for name in own])
        self.class_names = list(class_names)

    def with_run_labels(self, batch: Any) -> Any:
        """A batch with the labels of the run that is measured; padding (-1) is unchanged."""
        if self._run_labels is None:
            return batch
        label = batch["label"]
        mapped = self._run_labels.to(label.device)[label.clamp(min=0)]
        return {**batch, "label": torch.where(label < 0, label, mapped)}

    # --- splits

    @property
    def train_split(self) -> Split:
        return "trainval" if self.protocol == "final" else "train"

    @property
    def eval_split(self) -> Split:
        """The split that `predict` predicts, and `tune` and `final` measure. `holdout` validates on `val` as well."""
        return "val" if self.protocol == "tune" else "test"

    def setup(self, stage: str | None = None) -> None:
        """Build the splits of a stage, each once. `fit` also builds the test set, to check it before training."""
        self._check_protocol(stage)
        if stage in (None, "fit"):
            self._build(self.train_split)
        if self.protocol == "holdout" and stage in (None, "fit", "validate"):
            self._build("val")
        self._build(self.eval_split)
        if self.disjoint_splits:
            for split in self._splits:
                if split != self.train_split:
                    self.lists.check_disjoint(self.train_split, split)

    def listed(self, split: Split) -> Split:
        """The split whose list has the examples: folds of `tune` are parts of train and val together."""
        return "trainval" if self.fold is not None and split != "test" else split

    def part_of_fold(self, split: Split, labels: Sequence[int], groups: Sequence[object] | None = None) -> list[int]:
        """The positions of the training or validation examples of the fold.

        Args:
            split: `train` or `val`.
            labels: Class of each example of train and val together.
            groups: Group of each of them, as for `folds_of`.
        """
        fold = cast("Fold", self.fold)
        pool = subsample_indices(labels, self._fraction, self.shots, self.subset_seed, names=self.own_classes)
        grouped = None if groups is None else [groups[position] for position in pool]
        seed = self.subset_seed if fold.seed is None else fold.seed
        found = folds_of([labels[position] for position in pool], fold.folds, seed, grouped)
        return [position for position, own in zip(pool, found, strict=True) if (own == fold.number) == (split == "val")]

    def _build(self, split: Split) -> None:
        if split not in self._splits:
            self._splits[split] = self.build_split(split)

    def _check_protocol(self, stage: str | None) -> None:
        """Raise if the protocol does not offer a stage."""
        if stage == "test" and self.protocol == "tune":
            raise ProtocolError(
                "A test was requested under the protocol 'tune', which keeps the test set unseen while options are "
                "selected on the validation data. Train and test with protocol 'final' (--data.protocol final), or "
                "measure this model with `validate`."
            )
        if stage == "validate" and self.protocol == "final":
            raise ProtocolError(
                "A validation was requested under the protocol 'final', which trains on the validation data as well. "
                "Train and validate with protocol 'tune' (--data.protocol tune), or measure this model with `test`."
            )

    # --- batches

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._split(self.train_split)
        world, rank = self._world()
        # Depends on the global batch alone. Otherwise the sampler repeats examples to make the shares equal.
        drop = self.drop_last and length_of(dataset) >= self.batch_size * world
        # Also for one process: Lightning keeps this sampler and calls its set_epoch, and one process with batches of
        # 2 B sees those of two processes with B.
        return self._loader(dataset, self.batch_size, self._train_sampler(dataset, world, rank, drop), drop)

    def _train_sampler(self, dataset: Dataset[Any], world: int, rank: int, drop_last: bool) -> TrainSampler:
        return TrainSampler(dataset, world, rank, self.shuffle_seed, drop_last, self._seen)

    def _seen(self) -> int:
        """Examples of the current epoch that this process trained on before the run was interrupted and resumed."""
        fit_loop = getattr(self.trainer, "fit_loop", None)
        return (fit_loop.epoch_loop.batch_idx + 1) * self.batch_size if fit_loop else 0

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation examples, or no loader under `final`: Lightning then skips validation."""
        if self.protocol != "final":
            return self._eval_loader("val")
        # Lightning warns about an empty list, which is intended here.
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[Any]:
        self._check_protocol("test")
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Without padding: Lightning shares these among processes without repeating any."""
        return self._loader(self._split(self.eval_split), self.eval_batch_size)

    def _eval_loader(self, split: Split) -> DataLoader[Any]:
        return self._part_loader(self._split(split))

    def _part_loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        """Each process's share of an evaluation set, each sample once."""
        world, rank = self._world()
        if world == 1:
            return self._loader(dataset, self.eval_batch_size)
        padded = PaddedDataset(dataset, world, self.padding_of)
        sampler: DistributedSampler[Any] = DistributedSampler(padded, num_replicas=world, rank=rank, shuffle=False)
        return self._loader(padded, self.eval_batch_size, sampler)

    def _loader(
        self,
        dataset: Dataset[Any],
        batch_size: int | None,
        sampler: DistributedSampler[Any] | None = None,
        drop_last: bool = False,
    ) -> EpochLoader:
        """Create a loader. If `batch_size` is None, the sampler yields complete batches."""
        workers, source = self.num_workers, dataset.dataset if isinstance(dataset, PaddedDataset) else dataset
        if workers is None:
            devices = self.trainer.num_devices if self.trainer else 1
            workers = max(1, min(8, usable_cpus() // devices)) if self._needs_workers(source) else 0
        return EpochLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            collate_fn=self._collate_fn(source),
            num_workers=workers,
            worker_init_fn=start_worker if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # An own generator: otherwise each pass over the data draws from torch's and changes dropout.
            generator=torch.Generator().manual_seed(self.shuffle_seed),
        )

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        """Whether loader processes are worth it: a sample takes longer to read than to transfer."""
        return False

    def _collate_fn(self, dataset: Dataset[Any]) -> Callable[[list[Any]], Any] | None:  # noqa: ARG002
        """The function that makes a batch of samples. Default: torch's."""
        return None

    def _split(self, split: Split) -> Dataset[Any]:
        if split not in self._splits:
            raise RepLoRAError(
                f"The split {split!r} is not built yet. Call setup() first, or pass this datamodule to a Trainer, "
                "which calls it."
            )
        return self._splits[split]

    def _world(self) -> tuple[int, int]:
        """The number of processes and the rank of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class PaddedDataset(Dataset[Any]):
    """An evaluation set whose length is a multiple of the number of processes.

    Neither losses nor metrics count the padding, so no sample counts twice, unlike with a distributed sampler that
    repeats samples.

    Args:
        dataset: Evaluation set.
        multiple: Number of processes.
        padding_of: Function that makes padding like a given sample.
    """

    def __init__(self, dataset: Dataset[Any], multiple: int, padding_of: Callable[[Any], Any]) -> None:
        self.dataset = dataset
        self.padding_of = padding_of
        self.length = -(-length_of(dataset) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index] if index < length_of(self.dataset) else self.padding_of(self.dataset[0])


def length_of(dataset: Dataset[Any]) -> int:
    return len(cast("Sized", dataset))


def at_least(bound: int, **options: int | None) -> None:
    """Check that options are not too small. Raises RepLoRAError if an option is too small."""
    for name, value in options.items():
        if value is not None and value < bound:
            raise RepLoRAError(f"{name}={value} is too small: it must be at least {bound}.")


def one_of(choices: tuple[str, ...], **options: str) -> None:
    """Check that options are among `choices`. Raises RepLoRAError if an option is not."""
    for name, value in options.items():
        if value not in choices:
            raise RepLoRAError(f"{name}={value!r} is not an option. {nearest(value, choices)}")
