"""Records what TensorFlow 1's `tf.image.resize` returns, for `test_tf1_bilinear.py`.

    pip install tensorflow-cpu && python -m tests.datasets.record_tf1_bilinear

It writes `tf1_bilinear.npz`: the TensorFlow version, small results as they are, and the SHA-256 of large ones.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("tf1_bilinear.npz")
# Height and width of an image, and of what it becomes.
SMALL = [
    (8, 8, 28),
    (28, 28, 32),
    (32, 32, 48),
    (61, 47, 21),
    (47, 61, 32),
    (5, 7, 16),
    (1, 1, 4),
    (100, 3, 7),
    (9, 9, 9),
]
LARGE = [
    (32, 32, 224),
    (64, 64, 224),
    (96, 96, 224),
    (224, 224, 224),
    (256, 256, 224),
    (375, 500, 224),
    (500, 333, 384),
]


def picture(height: int, width: int) -> np.ndarray:
    """An image of noise, uint8 (height, width, 3), the same everywhere."""
    numbers = np.arange(1, height * width * 3 + 1, dtype=np.uint64)
    return (
        (numbers * numbers * np.uint64(2654435761) >> np.uint64(13) & np.uint64(255))
        .astype(np.uint8)
        .reshape(height, width, 3)
    )


def sha256(pixels: np.ndarray) -> str:
    """SHA-256 of float32 pixels."""
    return hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest()


def main() -> None:
    import tensorflow.compat.v1 as tf  # type: ignore[import-not-found]  # no dependency of the tests

    def resized(height: int, width: int, size: int) -> np.ndarray:
        # As in VPT's and Adapter+'s tf_dataset.py, whose images become float32 by a division after it.
        return tf.cast(tf.image.resize(picture(height, width), [size, size]), tf.float32).numpy()

    small = {f"{h}x{w}_to_{size}": resized(h, w, size) for h, w, size in SMALL}
    large = {f"{h}x{w}_to_{size}_sha256": np.array(sha256(resized(h, w, size))) for h, w, size in LARGE}
    np.savez_compressed(FILE, tensorflow=np.array(tf.__version__), **small, **large)


if __name__ == "__main__":
    main()
