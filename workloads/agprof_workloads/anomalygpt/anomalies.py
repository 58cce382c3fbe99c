"""Synthetic anomalies: a patch of another image is blended in with Poisson editing, as in NSA.

Each class has bounds for the patch, for how strongly a difference counts as an anomaly, and, for photographed
objects, the brightness of the background that a patch may not lie on alone.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""H x W x 3."""
Mask = NDArray[np.uint8]
"""H x W of 0 and 1."""
FloatMap = NDArray[np.float32]

TRIES = 200
MAX_PATCHES = 2
MIN_OVERLAP = 0.25
MIN_MASK_PIXELS = 50
HALF_WIDTH_SHAPE, HALF_WIDTH_SCALE, HALF_WIDTH_OFFSET = 2.0, 0.05, 0.03
LABEL_BLUR = 5
DIFFERENCE_BLUR = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Bounds are fractions of the image side; ``steepness`` and ``midpoint`` shape the label over grey levels."""

    half_height: tuple[float, float] = (0.03, 0.4)
    half_width: tuple[float, float] = (0.03, 0.4)
    steepness: float = 1 / 12
    midpoint: float = 24
    background: tuple[int, int] | None = None
    """Brightness of the background and the distance from it within which a pixel still belongs to it."""
    scale: tuple[float, float] = (0.7, 1.3)


BRIGHT, DARK = (200, 60), (20, 20)
TEXTURE_SCALE = (0.5, 2.0)
TEXTURE = Recipe(steepness=1 / 3, midpoint=7, scale=TEXTURE_SCALE)
BLADE = Recipe(background=BRIGHT)

RECIPES = {
    "bottle": Recipe(background=BRIGHT),
    "cable": Recipe(half_height=(0.05, 0.4), half_width=(0.05, 0.4)),
    "capsule": Recipe(half_height=(0.03, 0.15), steepness=1 / 2, midpoint=4, background=BRIGHT),
    "hazelnut": Recipe(half_height=(0.03, 0.35), half_width=(0.03, 0.35), background=DARK),
    "metal_nut": Recipe(steepness=1 / 3, midpoint=7, background=DARK),
    "pill": Recipe(half_height=(0.03, 0.2), steepness=1 / 3, midpoint=7, background=DARK),
    "screw": Recipe(half_height=(0.03, 0.12), half_width=(0.03, 0.12), steepness=1, midpoint=3, background=BRIGHT),
    "toothbrush": Recipe(half_width=(0.03, 0.2), steepness=1 / 6, midpoint=15, background=DARK),
    "transistor": Recipe(steepness=1 / 6, midpoint=15),
    "zipper": Recipe(half_width=(0.03, 0.2), steepness=1 / 6, midpoint=15, background=BRIGHT),
    "carpet": TEXTURE,
    "grid": TEXTURE,
    "leather": TEXTURE,
    "tile": TEXTURE,
    "wood": Recipe(steepness=1 / 6, midpoint=15, scale=TEXTURE_SCALE),
    "ablation": BLADE,
    "breakdown": BLADE,
    "fracture": BLADE,
    "groove": BLADE,
    "brick": TEXTURE,
    "grass": TEXTURE,
    "gravel": TEXTURE,
    "coffee": Recipe(steepness=1 / 6, midpoint=15),
    "coins": Recipe(steepness=1 / 6, midpoint=15),
    "motorcycle": Recipe(steepness=1 / 6, midpoint=15),
}
ANY_CLASS = Recipe(scale=TEXTURE_SCALE)
"""What VisA's classes, and any class that is not listed, are made with."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """An image with anomalies, their soft label in 0..1, and where they are, in words."""

    image: Image
    label: FloatMap
    places: list[str]


def add_anomalies(image: Image, source: Image, class_name: str, rng: Generator) -> Anomaly:
    """One patch always, a second one on a coin flip. The result depends on the arguments and ``rng`` only."""
    recipe = RECIPES.get(class_name, ANY_CLASS)
    changed = image
    covered = np.zeros(image.shape[:2], np.uint8)
    places: list[str] = []
    for patch_number in range(MAX_PATCHES):
        if patch_number > 0 and rng.random() < 0.5:
            break
        blended = blend_patch(changed, source, recipe, rng)
        if blended is None:
            continue
        changed, mask = blended
        covered |= mask
        # the second place is the centre of both patches' bounding box, as the original reports it
        places.append(place_in_words(covered))
    return Anomaly(changed, soft_label(image, changed, covered, recipe), places)


def blend_patch(target: Image, source: Image, recipe: Recipe, rng: Generator) -> tuple[Image, Mask] | None:
    """The target with a resized rectangle of the source blended in, and the pixels it covers; None if none fits."""
    side_y, side_x = target.shape[:2]
    source_object = object_mask(source, recipe)
    target_object = object_mask(target, recipe)
    for _ in range(TRIES):
        half_y = half_extent(recipe.half_height, side_y, rng)
        half_x = half_extent(recipe.half_width, side_x, rng)
        y = int(rng.integers(half_y, side_y - half_y + 1))
        x = int(rng.integers(half_x, side_x - half_x + 1))
        rows, columns = slice(y - half_y, y + half_y), slice(x - half_x, x + half_x)
        if source_object[rows, columns].any():
            break
    else:
        return None
    scale = float(np.clip(rng.normal(1, 0.5), *recipe.scale))
    height = min(max(int(2 * half_y * scale), 3), side_y - 4)
    width = min(max(int(2 * half_x * scale), 3), side_x - 4)
    patch = cv2.resize(source[rows, columns], (width, height))
    patch_object = cv2.resize(source_object[rows, columns], (width, height), interpolation=cv2.INTER_NEAREST)
    for _ in range(TRIES):
        top = int(rng.integers(1, side_y - height))
        left = int(rng.integers(1, side_x - width))
        below = target_object[top : top + height, left : left + width]
        if (patch_object & below).sum() >= MIN_OVERLAP * patch_object.sum() and (patch_object & below).any():
            break
    else:
        return None
    patch_mask = (patch_object | below).astype(np.uint8)
    patch_mask[[0, -1], :] = 0
    patch_mask[:, [0, -1]] = 0
    if patch_mask.sum() < MIN_MASK_PIXELS:
        return None
    return poisson_blend(target, patch, patch_mask, top, left)


def poisson_blend(
    target: Image, patch: Image, patch_mask: Mask, top: int, left: int, mode: int = cv2.NORMAL_CLONE
) -> tuple[Image, Mask]:
    """``patch`` blended in where ``patch_mask`` is set; its corner comes to lie at (top, left)."""
    height, width = patch_mask.shape
    mask = np.zeros(target.shape[:2], np.uint8)
    mask[top : top + height, left : left + width] = patch_mask
    # OpenCV centres the bounding box of the mask's set pixels, so it must be told that box's centre
    box_x, box_y, box_width, box_height = cv2.boundingRect(patch_mask)
    centre = (left + box_x + box_width // 2, top + box_y + box_height // 2)
    blended = cv2.seamlessClone(np.ascontiguousarray(patch), target, patch_mask * 255, centre, mode)
    return np.asarray(blended, np.uint8), mask


def object_mask(image: Image, recipe: Recipe) -> Mask:
    """Where the photographed object is; everywhere for a class that has no background."""
    if recipe.background is None:
        return np.ones(image.shape[:2], np.uint8)
    brightness, threshold = recipe.background
    grey = image.mean(axis=2)
    return np.asarray(np.abs(grey - brightness) > threshold, np.uint8)


def half_extent(bounds: tuple[float, float], side: int, rng: Generator) -> int:
    fraction = HALF_WIDTH_OFFSET + rng.gamma(HALF_WIDTH_SHAPE, HALF_WIDTH_SCALE)
    return max(int(np.clip(fraction, *bounds) * side), 2)


def soft_label(original: Image, changed: Image, covered: Mask, recipe: Recipe) -> FloatMap:
    """How anomalous a pixel is: a logistic curve over the smoothed difference, where there is any difference."""
    difference = np.abs(original.astype(np.float32) - changed.astype(np.float32)).mean(axis=2) * covered
    differs = cv2.medianBlur((difference > 1).astype(np.uint8), LABEL_BLUR)
    smooth = cv2.medianBlur(difference.astype(np.uint8), DIFFERENCE_BLUR).astype(np.float32)
    curve = 1 / (1 + np.exp(-recipe.steepness * (smooth - recipe.midpoint)))
    return np.asarray(differs * curve, np.float32)


def place_in_words(mask: Mask) -> str:
    """``top left`` .. ``bottom right``, by thirds of the image, for the centre of the mask's bounding box."""
    x, y, width, height = cv2.boundingRect(mask)
    row = min(3 * (2 * y + height) // (2 * mask.shape[0]), 2)
    column = min(3 * (2 * x + width) // (2 * mask.shape[1]), 2)
    if row == 1:
        return ("left", "center", "right")[column]
    return ("top", "", "bottom")[row] + (" left", "", " right")[column]
