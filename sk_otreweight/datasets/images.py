"""Images of bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def scale_images(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images, of any shape, scaled from 0..255 to [0, 1]."""
    scaled = images.astype(np.float32)
    scaled /= 255
    return scaled
