"""Label rules: how the labels of the 19 tasks follow from the annotations of the original data sets.

The rules and bin edges are those of google-research/task_adaptation, `data/{clevr,kitti,dsprites,smallnorb}.py`.
Bins are open below and closed above: a distance of exactly 8.0 belongs to the bin that ends at 8.0.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from replora.datasets.errors import LabelError
from replora.datasets.vtab.dataset import VTAB_TASKS

CLEVR_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)
CLEVR_FARTHEST = 100.0
KITTI_EDGES = (8.0, 20.0)  # meters
KITTI_NEAREST, KITTI_FARTHEST = -100.0, 999.0  # meters
KITTI_VEHICLES = (0, 1, 2)  # Car, Van, Truck among the types of TFDS
NO_VEHICLE = 3


def clevr_count(objects: int) -> int:
    """3 to 10 objects -> 0 to 7."""
    return _within(objects - 3, 8, f"CLEVR scenes have 3 to 10 objects, but this one has {objects}")


def clevr_distance(depths: Sequence[float]) -> int:
    """Depths of all objects (the third pixel coordinate, in CLEVR's units) -> bin 0 to 5 of the nearest."""
    nearest = min(depths, default=math.nan)
    if not 0 < nearest <= CLEVR_FARTHEST:
        raise LabelError(f"The nearest CLEVR object is at {nearest}; depths lie between 0 and {CLEVR_FARTHEST:g}.")
    return bisect_left(CLEVR_EDGES, nearest)


def kitti_distance(types: Sequence[int], depths: Sequence[float]) -> int:
    """Type and depth (meters ahead of the camera) of all objects -> bin 0 to 2 of the nearest car, van or truck.

    Without any vehicle the label is 3.
    """
    vehicles = [depth for kind, depth in zip(types, depths, strict=True) if kind in KITTI_VEHICLES]
    if not vehicles:
        return NO_VEHICLE
    nearest = min(vehicles)
    if not KITTI_NEAREST < nearest <= KITTI_FARTHEST:
        raise LabelError(
            f"The nearest KITTI vehicle is at {nearest} m; depths lie between {KITTI_NEAREST:g} and {KITTI_FARTHEST:g}."
        )
    return bisect_left(KITTI_EDGES, nearest)


def dsprites_location(x_position: int) -> int:
    """32 positions -> 16 classes of two."""
    return _within(x_position, 32, f"dSprites has x positions 0 to 31, not {x_position}") // 2


def dsprites_orientation(orientation: int) -> int:
    """40 orientations -> 16 classes, alternately of three and two: floor(orientation / 2.5)."""
    return 2 * _within(orientation, 40, f"dSprites has orientations 0 to 39, not {orientation}") // 5


# An example of TensorFlow Datasets as NumPy -> its label. Other tasks use the feature `label`.
_RULES: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "clevr_count": lambda example: clevr_count(len(example["objects"]["size"])),
    "clevr_dist": lambda example: clevr_distance([float(xyz[2]) for xyz in example["objects"]["pixel_coords"]]),
    "kitti": lambda example: kitti_distance(
        [int(kind) for kind in example["objects"]["type"]], [float(xyz[2]) for xyz in example["objects"]["location"]]
    ),
    "dsprites_loc": lambda example: dsprites_location(int(example["label_x_position"])),
    "dsprites_ori": lambda example: dsprites_orientation(int(example["label_orientation"])),
    "smallnorb_azi": lambda example: int(example["label_azimuth"]),
    "smallnorb_ele": lambda example: int(example["label_elevation"]),
}


def label_of(task: str, example: Mapping[str, Any]) -> int:
    """The label of an example of TensorFlow Datasets as NumPy; `objects` of CLEVR and KITTI are arrays of objects.

    Raises:
        LabelError: The annotation is outside the range of the rule, or the label is not one of the task's classes.
    """
    label = _RULES[task](example) if task in _RULES else int(example["label"])
    classes = VTAB_TASKS[task].num_classes
    return _within(label, classes, f"{task} has labels 0 to {classes - 1}, but this example has {label}")


def _within(value: int, count: int, message: str) -> int:
    if not 0 <= value < count:
        raise LabelError(f"{message}. Is this the right version of the data set?")
    return value
