"""Reading images as the original does: Pillow's bicubic resize, CLIP's mean and deviation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from agprof_workloads.anomalygpt.anomalies import Image
from agprof_workloads.anomalygpt.sizes import IMAGE_SIDE

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def read_stretched(path: Path) -> Image:
    """224 x 224, whatever the shape was: how the training images are held in memory."""
    with Pillow.open(path) as file:
        resized = file.convert("RGB").resize((IMAGE_SIDE, IMAGE_SIDE), Pillow.Resampling.BICUBIC)
    return np.asarray(resized)


def read_cropped(path: Path) -> Image:
    """The shorter side becomes 224, then the middle square is cut out."""
    with Pillow.open(path) as file:
        width, height = file.size
        scale = IMAGE_SIDE / min(width, height)
        size = (max(int(width * scale), IMAGE_SIDE), max(int(height * scale), IMAGE_SIDE))
        resized = file.convert("RGB").resize(size, Pillow.Resampling.BICUBIC)
    left, top = round((size[0] - IMAGE_SIDE) / 2), round((size[1] - IMAGE_SIDE) / 2)
    return np.asarray(resized.crop((left, top, left + IMAGE_SIDE, top + IMAGE_SIDE)))


def normalised(image: Image) -> Tensor:
    """3 x 224 x 224, float32."""
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
