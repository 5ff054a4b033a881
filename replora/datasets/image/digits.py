"""scikit-learn's handwritten digits as a task like those of VTAB-1K: 800 + 200 + 797 images, without a download."""

from __future__ import annotations

import numpy as np

from replora.datasets.common.subsample import stratified_order
from replora.datasets.image.pixels import READER, PixelImages, PixelSplit
from replora.datasets.image.read import ImageReader


class Digits(PixelImages):
    """1,797 gray images of 8 x 8 pixels, ten classes (Alpaydin and Kaynak 1998, UCI, as shipped by scikit-learn).

    The splits are fixed and stratified: the first 800 images of a stratified order with seed 0 are `train`, the next
    200 `val`, both together `trainval`, and the remaining 797 `test`.

    Args:
        split: `train`, `val`, `trainval` or `test`.
        reader: Reader of the images.
    """

    def __init__(
        self,
        split: PixelSplit,
        reader: ImageReader = READER,
    ) -> None:
        from sklearn.datasets import load_digits  # slow to import and needed only here

        digits = load_digits()
        order = stratified_order(digits.target.tolist(), seed=0)
        chosen = {"train": order[:800], "val": order[800:1000], "trainval": order[:1000], "test": order[1000:]}[split]
        levels = np.rint(digits.images[chosen] * (255 / 16))  # 0 .. 16 -> 0 .. 255
        gray = np.clip(levels, 0, 255).astype(np.uint8)  # (N, 8, 8)
        labels = digits.target[chosen].tolist()
        super().__init__(gray, labels, [str(name) for name in digits.target_names], reader)
