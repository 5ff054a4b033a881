"""The label rules on handmade examples, at every edge of every bin."""

from __future__ import annotations

import numpy as np
import pytest

from replora.datasets.errors import LabelError
from replora.datasets.vtab.dataset import VTAB_TASKS
from replora.datasets.vtab.labels import (
    clevr_count,
    clevr_distance,
    dsprites_location,
    dsprites_orientation,
    kitti_distance,
    label_of,
)

CAR, VAN, TRUCK, PEDESTRIAN, SITTING, CYCLIST, TRAM, MISC, DONT_CARE = range(9)


def above(value: float) -> float:
    """The next number in single precision, in which TFDS stores distances."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


def test_clevr_count() -> None:
    assert [clevr_count(objects) for objects in range(3, 11)] == list(range(8))
    for objects in (0, 2, 11):
        with pytest.raises(LabelError, match=f"3 to 10 objects, but this one has {objects}"):
            clevr_count(objects)


@pytest.mark.parametrize(("edge", "below"), [(8.0, 0), (8.5, 1), (9.0, 2), (9.5, 3), (10.0, 4)])
def test_clevr_distance_at_the_edges(edge: float, below: int) -> None:
    assert clevr_distance([edge]) == below
    assert clevr_distance([above(edge)]) == below + 1


def test_clevr_distance_is_that_of_the_nearest() -> None:
    assert clevr_distance([11.0, 8.7, 12.5]) == 2
    assert clevr_distance([above(0)]) == 0
    assert clevr_distance([100.0]) == 5


@pytest.mark.parametrize("depths", [[], [0.0], [-1.0], [above(100)], [float("nan")]])
def test_clevr_distance_out_of_range(depths: list[float]) -> None:
    with pytest.raises(LabelError, match="nearest CLEVR object"):
        clevr_distance(depths)


@pytest.mark.parametrize(
    ("depth", "label"),
    [(above(-100), 0), (8.0, 0), (above(8), 1), (20.0, 1), (above(20), 2), (999.0, 2)],
)
def test_kitti_at_the_edges(depth: float, label: int) -> None:
    assert kitti_distance([CAR], [depth]) == label


@pytest.mark.parametrize("vehicle", [CAR, VAN, TRUCK])
def test_kitti_vehicles(vehicle: int) -> None:
    assert kitti_distance([vehicle, CAR], [5.0, 30.0]) == 0


@pytest.mark.parametrize("other", [PEDESTRIAN, SITTING, CYCLIST, TRAM, MISC, DONT_CARE])
def test_kitti_others_do_not_count(other: int) -> None:
    assert kitti_distance([other, CAR], [5.0, 30.0]) == 2
    assert kitti_distance([other], [-1000.0]) == 3


def test_kitti_without_objects() -> None:
    assert kitti_distance([], []) == 3


def test_kitti_out_of_range() -> None:
    for depth in (-100.0, above(999), float("nan")):
        with pytest.raises(LabelError, match="nearest KITTI vehicle"):
            kitti_distance([CAR], [depth])


def test_dsprites_location() -> None:
    assert [dsprites_location(x) for x in range(32)] == [label for label in range(16) for _ in range(2)]


def test_dsprites_orientation_has_three_and_two_values_by_turns() -> None:
    labels = [dsprites_orientation(orientation) for orientation in range(40)]
    assert labels == [int(orientation // 2.5) for orientation in range(40)]
    assert [labels.count(label) for label in range(16)] == [3, 2] * 8


@pytest.mark.parametrize(("rule", "beyond"), [(dsprites_location, 32), (dsprites_orientation, 40)])
def test_dsprites_out_of_range(rule, beyond) -> None:
    for value in (-1, beyond):
        with pytest.raises(LabelError, match=f"not {value}"):
            rule(value)


# --- from an example of TensorFlow Datasets

CLEVR = {"objects": {"size": np.zeros(4, np.int64), "pixel_coords": np.array([[1, 2, 9.5], [0, 0, 9.6]], np.float32)}}
KITTI = {"objects": {"type": np.array([PEDESTRIAN, VAN]), "location": np.array([[0, 0, 3.0], [1, 1, 19]], np.float32)}}
NOTHING = {"objects": {"type": np.zeros(0, np.int64), "location": np.zeros((0, 3), np.float32)}}
DSPRITES = {"label_x_position": np.int64(31), "label_y_position": np.int64(4), "label_orientation": np.int64(5)}
SMALLNORB = {"label_azimuth": np.int64(17), "label_elevation": np.int64(8), "label_category": np.int64(1)}


@pytest.mark.parametrize(
    ("task", "example", "label"),
    [
        ("clevr_count", CLEVR, 1),
        ("clevr_dist", CLEVR, 3),
        ("kitti", KITTI, 1),
        ("kitti", NOTHING, 3),
        ("dsprites_loc", DSPRITES, 15),
        ("dsprites_ori", DSPRITES, 2),
        ("smallnorb_azi", SMALLNORB, 17),
        ("smallnorb_ele", SMALLNORB, 8),
        ("dmlab", {"label": np.int64(5)}, 5),
        ("cifar", {"label": np.int64(99), "coarse_label": np.int64(3)}, 99),
        ("caltech101", {"label": np.int64(101)}, 101),
        ("diabetic_retinopathy", {"label": np.int64(4)}, 4),
    ],
)
def test_label_of(task: str, example: dict[str, object], label: int) -> None:
    assert label_of(task, example) == label


@pytest.mark.parametrize(
    "task", [task for task in VTAB_TASKS if not task.startswith(("clevr", "kitti", "dspr", "small"))]
)
def test_plain_labels_stay_inside_the_table(task: str) -> None:
    classes = VTAB_TASKS[task].num_classes
    assert [label_of(task, {"label": np.int64(label)}) for label in (0, classes - 1)] == [0, classes - 1]
    for label in (-1, classes):
        with pytest.raises(LabelError, match=f"labels 0 to {classes - 1}, but this example has {label}"):
            label_of(task, {"label": np.int64(label)})
