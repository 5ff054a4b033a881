"""Stratified, nested subsets of the training images.

They follow from one order of all images, which depends on the seed and the labels only:

1. Within a class, images are ranked by SHA-256 of (seed, class, position), which is the same on every machine and in
   every process, with every version of numpy or torch.
2. The order begins with the first image of every class, the classes ranked by SHA-256 of (seed, class).
3. Then image j = 1, 2, ... of a class with n_c images follows at time (2j + 1) / (2 n_c), ties in the order of step 2.

Step 3 is Sainte-Laguë's rule for sharing seats in proportion, so every prefix of the order is stratified; and because
every fraction is a prefix of the same order, a smaller subset lies inside each larger one of the same seed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from replora.datasets.errors import SubsetError

log = logging.getLogger(__name__)


def subsample_indices(
    labels: Sequence[int],
    fraction: float | None = None,
    shots: int | None = None,
    seed: int = 0,
    kind: str = "classes",
    option: str = "train_fraction",
    names: Sequence[str] = (),
) -> list[int]:
    """The positions of a subset.

    `fraction` takes `max(1, round(fraction * n))` of the n images (the decimal as written, halves rounded up), in
    proportion to the classes, with at least one image of each class that is present if that number is large enough;
    otherwise as many classes get one image each. `shots` takes that many images of each class that is present. Without
    either, all images are taken.

    Subsets of one seed are nested: `fraction=0.1` is part of `fraction=0.3`, and `shots=k` of `shots=k+1`.

    Args:
        labels: Class of each training image.
        fraction: Fraction of the images, in (0, 1].
        shots: Images per class (>= 1), instead of `fraction`.
        seed: Random seed; any integer.
        kind: What the labels are, in the plural, for the warning about those without an example.
        option: Name of the option that gave `fraction`, for messages.
        names: Name of each class, for messages. Default: its number.

    Returns:
        Sorted positions in `labels`, each at most once.

    Raises:
        SubsetError: An option is out of its range, both are given, or a class has fewer images than `shots`.
    """
    check_subset_options(fraction, shots, option)
    if shots is not None:
        return sorted(position for ranked in _shots_per_class(labels, shots, seed, names) for position in ranked)
    if fraction is None or not labels:
        return list(range(len(labels)))
    # Fraction(repr) is the decimal that the user wrote: 0.145 of 100 is 14.5, which a product of floats may miss.
    size = max(1, math.floor(Fraction(repr(float(fraction))) * len(labels) + Fraction(1, 2)))
    classes = len(set(labels))
    if size < classes:
        log.warning(
            "%s=%s of %d examples is %d, fewer than the %d %s present: %d %s have no example",
            option,
            fraction,
            len(labels),
            size,
            classes,
            kind,
            classes - size,
            kind,
        )
    return sorted(stratified_order(labels, seed)[:size])


def places_within(
    part: Sequence[int], whole: Sequence[int], part_names: Sequence[object] = (), whole_names: Sequence[object] = ()
) -> list[int]:
    """The position in `train` and `val` together of each image of `train`: by its name, or as the first ones.

    The benchmarks list the images of `train` first. VTAB-1K has a file of its own for each image of the union, under
    another name.

    Args:
        part: Class of each image of `train`.
        whole: Class of each image of both.
        part_names: Name of each image of `train`; none where images have no names.
        whole_names: The same of both.

    Raises:
        SubsetError: Names differ, and the labels show that the images of `train` are not the first ones.
    """
    known = {name: place for place, name in enumerate(whole_names)}
    if part_names and all(name in known for name in part_names):
        return [known[name] for name in part_names]
    if list(whole[: len(part)]) != list(part):
        raise SubsetError(
            "The list of train and validation together does not begin with the training images, so the part of its "
            "subset that is not validation is not known. Correct the lists, or draw a subset of the training images "
            "alone: --data.subset_rule by_split"
        )
    return list(range(len(part)))


def check_subset_options(fraction: float | None, shots: int | None, option: str = "train_fraction") -> None:
    """Check the options of a subset before the training set is known. `option` is the name of that of `fraction`.

    Raises:
        SubsetError: An option is out of its range, or both are given.
    """
    if fraction is not None and shots is not None:
        raise SubsetError(
            f"Both train_fraction={fraction} and shots={shots} were given, but they contradict each other. "
            "Keep one: train_fraction takes a part of all examples, shots a number of examples per class. If a "
            f"configuration sets the fraction: --data.shots {shots} --data.train_fraction 1.0"
        )
    # NaN fails the comparison as well.
    if fraction is not None and not 0 < fraction <= 1:
        raise SubsetError(f"{option}={fraction} is not in (0, 1]: 0.1 takes a tenth of the examples, 1.0 takes all.")
    if shots is not None and (not isinstance(shots, int) or shots < 1):
        raise SubsetError(f"shots={shots} is not a whole number of examples per class (>= 1).")


def stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """All positions in the order that the docstring of this file defines; each prefix is stratified."""
    timed: list[tuple[float, int, int]] = []
    for class_rank, ranked in enumerate(_ranked_classes(labels, seed)):
        count = len(ranked)
        for j, position in enumerate(ranked):
            # Equal ratios give equal floats (IEEE division is correctly rounded), so that ties are exact everywhere.
            time = (2 * j + 1) / (2 * count) if j else 0.0
            timed.append((time, class_rank, position))
    return [position for _, _, position in sorted(timed)]


class Fold(NamedTuple):
    """One part of a division into folds.

    Attributes:
        number: Number of the fold, from 1.
        folds: Number of folds (>= 2).
        seed: Random seed of the division; None for that of the subset.
    """

    number: int
    folds: int
    seed: int | None

    def __str__(self) -> str:
        return f"{self.number}/{self.folds}" + ("" if self.seed is None else f"@{self.seed}")


def parse_fold(text: str) -> Fold:
    """`2/5` -> the second of five folds; `2/5@3` -> that of the division with the seed 3.

    Raises:
        SubsetError: It is not of this form, there are fewer than two folds, or there is no fold of this number.
    """
    form = re.fullmatch(r"(\d+)/(\d+)(?:@(\d+))?", text)
    fold = Fold(int(form[1]), int(form[2]), int(form[3]) if form[3] else None) if form else Fold(0, 0, None)
    if fold.folds < 2 or not 1 <= fold.number <= fold.folds:
        raise SubsetError(
            f"fold={text} is not of the form i/k with 1 <= i <= k and k >= 2: 2/5 is the second of five, and 2/5@3 "
            "that of another division, with the seed 3."
        )
    return fold


def folds_of(labels: Sequence[int], folds: int, seed: int, groups: Sequence[object] | None = None) -> list[int | None]:
    """The fold of each example, from 1, for cross-validation. Folds are stratified and of nearly equal sizes.

    Groups of a class are ranked by SHA-256 and dealt to the folds in turn; each class begins where the one before
    ended.

    Args:
        labels: Class of each example.
        folds: Number of folds (>= 2).
        seed: Random seed; any integer.
        groups: Group of each example, such as the film of a clip; the examples of a group are in one fold. Default:
            each example is a group.

    Returns:
        None for the examples of a class that has a single group: all folds train on them, as a model that has never
        seen a class cannot be measured on it.

    Raises:
        SubsetError: No class has as many groups as there are folds, so a fold would be empty.
    """
    found: list[int | None] = [None] * len(labels)
    dealt, most = 0, 0
    for ranked in _ranked_classes(labels, seed):
        of_class = list(dict.fromkeys(ranked if groups is None else (groups[position] for position in ranked)))
        most = max(most, len(of_class))
        if len(of_class) < 2:
            continue
        places = {group: (dealt + place) % folds + 1 for place, group in enumerate(of_class)}
        for position in ranked:
            found[position] = places[position if groups is None else groups[position]]
        dealt += len(of_class)
    if most < folds:
        remedy = f"Use at most {most} folds" if most >= 2 else "Add examples, so that a class has two or more"
        raise SubsetError(
            f"{folds} folds need a class with {folds} examples or more, but the largest class has {most}. {remedy}."
        )
    return found


def _shots_per_class(labels: Sequence[int], shots: int, seed: int, names: Sequence[str]) -> list[list[int]]:
    classes = _ranked_classes(labels, seed)
    short = sorted((labels[ranked[0]], len(ranked)) for ranked in classes if len(ranked) < shots)
    if short:
        listed = ", ".join(f"{repr(names[k]) if names else f'class {k}'} has {count}" for k, count in short[:10])
        more = f" and {len(short) - 10} more classes have too few" if len(short) > 10 else ""
        raise SubsetError(
            f"shots={shots} asks for {shots} examples of every class, but {listed}{more}. "
            f"Use at most shots={min(count for _, count in short)}, or train_fraction, which needs no equal numbers."
        )
    return [ranked[:shots] for ranked in classes]


def _ranked_classes(labels: Sequence[int], seed: int) -> list[list[int]]:
    """The positions of each class in their seeded order; the classes in theirs."""
    classes: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        classes.setdefault(int(label), []).append(position)
    return [
        sorted(classes[label], key=lambda position: _digest(f"image {seed} {label} {position}"))
        for label in sorted(classes, key=lambda label: _digest(f"class {seed} {label}"))
    ]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
