"""A miniature of MVTec-AD cut from the pictures inside the scikit-image wheel: real images, no download.

Three textures and three objects in MVTec-AD's folder layout, with blended, mixed and swapped regions as defects and
their masks; beside it, photographs with questions and answers in the layout of PandaGPT's instruction data.
"""

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image as Pillow

from agprof_workloads.anomalygpt.anomalies import Image, Mask, poisson_blend

VERSION = 1
"""Part of the cache folder's name: raise it when the pictures change."""
SIDE = 256
SEED = 20
TRAIN_GOOD, TEST_GOOD, PER_DEFECT = 8, 4, 4
DEFECTS = ("blend", "mixed", "swap")
TEXTURES = ("brick", "grass", "gravel")
OBJECTS = ("coffee", "coins", "motorcycle")
CLASSES = (*TEXTURES, *OBJECTS)
PHOTOGRAPHS = 24
BLOB_RADIUS = (12, 30)
DILATION = 3
CONTRAST = 4
TRIES = 200
MIN_AREA = 0.003
VISIBLE = 8

ABOUT = {
    "brick": ("What material fills the picture?", "It is a wall of bricks laid in rows."),
    "grass": ("What grows here?", "The picture is filled with grass seen from above."),
    "gravel": ("What covers the ground?", "The ground is covered with gravel."),
    "coffee": ("What stands on the table?", "A cup of coffee on a saucer stands on the table."),
    "coins": ("What objects are lined up?", "They are old coins, laid out in rows."),
    "motorcycle": ("Which vehicle is shown?", "A motorcycle is parked indoors."),
}


def miniature(cache: Path | None = None) -> Path:
    """The folder that holds ``mvtec/``, ``images/`` and ``sft.json``; built at the first call.

    Processes that ask at the same time get the same finished folder: one builds, under a lock that dies with it, and
    renames the result into place.
    """
    cache = cache or cache_folder()
    folder = cache / f"anomalygpt-miniature-{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
            try:
                build(building)
                building.chmod(0o755)
                building.rename(folder)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get("AGPROF_CACHE") or Path.home() / ".cache" / "agprof")


def build(folder: Path) -> None:
    pictures = {name: picture(name) for name in CLASSES}
    for number, name in enumerate(CLASSES):
        rng = np.random.default_rng([SEED, number])
        others = [pictures[other] for other in CLASSES if other != name]
        build_class(folder / "mvtec" / name, pictures[name], others, rng, texture=name in TEXTURES)
    build_photographs(folder, pictures)


def picture(name: str) -> Image:
    from skimage import data

    pixels = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    if pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3], np.uint8)


def build_class(folder: Path, whole: Image, others: list[Image], rng: Generator, *, texture: bool) -> None:
    for part, count in (("train", TRAIN_GOOD), ("test", TEST_GOOD)):
        for index in range(count):
            write(folder / part / "good" / f"{index:03}.png", view(whole, rng, texture=texture))
    for defect in DEFECTS:
        for index in range(PER_DEFECT):
            good = view(whole, rng, texture=texture)
            other = view(others[rng.integers(len(others))], rng, texture=True)
            bad, mask = damage(good, other, defect, rng)
            write(folder / "test" / defect / f"{index:03}.png", bad)
            write(folder / "ground_truth" / defect / f"{index:03}_mask.png", mask * 255)


def build_photographs(folder: Path, pictures: dict[str, Image]) -> None:
    rng = np.random.default_rng([SEED, len(pictures)])
    conversations = []
    for index in range(PHOTOGRAPHS):
        name = CLASSES[index % len(CLASSES)]
        question, answer = ABOUT[name]
        write(folder / "images" / f"{index:06}.jpg", view(pictures[name], rng, texture=name in TEXTURES))
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        conversations.append({"image_name": f"{index:06}", "conversation": turns})
    (folder / "sft.json").write_text(json.dumps(conversations, indent=1))


def view(whole: Image, rng: Generator, *, texture: bool) -> Image:
    """A square cut-out at slightly random brightness: anywhere on a texture, about the middle of an object."""
    height, width = whole.shape[:2]
    side = min(SIDE, height, width) if texture else int(min(height, width) * rng.uniform(0.9, 1.0))
    if texture:
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    else:
        shift = rng.uniform(-0.03, 0.03, size=2) * side
        top = int(np.clip((height - side) / 2 + shift[0], 0, height - side))
        left = int(np.clip((width - side) / 2 + shift[1], 0, width - side))
    cut = cv2.resize(whole[top : top + side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(cut * rng.uniform(0.9, 1.1), 0, 255), np.uint8)


def damage(good: Image, other: Image, defect: str, rng: Generator) -> tuple[Image, Mask]:
    """A good image with one elliptical defect that can be seen, and the pixels that changed.

    Poisson editing also moves pixels outside its mask a little, so the mask is what differs inside a slightly larger
    ellipse.
    """
    for _ in range(TRIES):
        bad, covered = changed(good, other, defect, rng)
        near = cv2.dilate(covered, np.ones((DILATION, DILATION), np.uint8))
        difference = np.abs(good.astype(np.int16) - bad.astype(np.int16)).mean(axis=2)
        mask = (difference > 1) & (near > 0)
        if mask.mean() > MIN_AREA and difference[mask].mean() > VISIBLE:
            return bad, mask.astype(np.uint8)
    raise AssertionError(f"no {defect} defect could be made visible")


def changed(good: Image, other: Image, defect: str, rng: Generator) -> tuple[Image, Mask]:
    """A defect of that kind somewhere, which may be hardly visible on alike ground, and the ellipse it was put in."""
    radius_y, radius_x = (int(r) for r in rng.integers(*BLOB_RADIUS, size=2))
    height, width = 2 * radius_y + 5, 2 * radius_x + 5
    blob = np.zeros((height, width), np.uint8)
    cv2.ellipse(blob, (width // 2, height // 2), (radius_x, radius_y), 0, 0, 360, 1, cv2.FILLED)
    top, left = int(rng.integers(1, SIDE - height)), int(rng.integers(1, SIDE - width))
    spot = slice(top, top + height), slice(left, left + width)
    if defect == "swap":
        # turned upside down and darkened: a texture's own pixels would hardly show on the texture
        swapped = (good[::-1, ::-1][spot] * 0.7).astype(np.uint8)
        bad, mask = good.copy(), np.zeros((SIDE, SIDE), np.uint8)
        mask[spot] = blob
        bad[spot][blob > 0] = swapped[blob > 0]
        return bad, mask
    if defect == "mixed":
        # mixed cloning keeps the stronger edges, which would be the texture's own
        return poisson_blend(good, contrasted(other[spot]), blob, top, left, cv2.MIXED_CLONE)
    return poisson_blend(good, other[spot], blob, top, left)


def contrasted(pixels: Image) -> Image:
    middle = pixels.mean()
    return np.asarray(np.clip((pixels - middle) * CONTRAST + middle, 0, 255), np.uint8)


def write(path: Path, pixels: Image | Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Pillow.fromarray(pixels).save(path, quality=95)
    else:
        Pillow.fromarray(pixels).save(path, compress_level=1)
