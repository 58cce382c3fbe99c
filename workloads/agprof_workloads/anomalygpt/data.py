"""The two data sets and their loaders: inspection images with synthetic anomalies, and general instructions."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from agprof_workloads.anomalygpt.anomalies import Image, add_anomalies
from agprof_workloads.anomalygpt.images import normalised, read_cropped, read_stretched
from agprof_workloads.anomalygpt.prompts import ANY_OBJECT, Conversation, Turn, inspection
from agprof_workloads.anomalygpt.sizes import IMAGE_SIDE

KEPT_TURNS = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its conversation. ``mask`` and ``path`` are None for general instructions."""

    image: Tensor
    class_name: str
    conversation: Conversation
    mask: Tensor | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What one micro-step is fed. ``masks`` (B x 224 x 224, 0..1) and ``paths`` are None for general instructions."""

    images: Tensor
    class_names: list[str]
    conversations: list[Conversation]
    masks: Tensor | None
    paths: list[Path] | None


def collate(items: list[list[Sample]]) -> Batch:
    """All samples of all items, in order: an MVTec item brings two, a normal image and a synthetic one."""
    samples = [sample for item in items for sample in item]
    masks = [sample.mask for sample in samples if sample.mask is not None]
    paths = [sample.path for sample in samples if sample.path is not None]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        class_names=[sample.class_name for sample in samples],
        conversations=[sample.conversation for sample in samples],
        masks=torch.stack(masks) if masks else None,
        paths=paths or None,
    )


class MvtecDataset(Dataset[list[Sample]]):
    """Every ``train/good`` image of an MVTec-AD folder, decoded at the start and kept in memory.

    An item is the image as it is, and the image with anomalies whose patches come from the item served before.
    """

    def __init__(self, root: Path, descriptions: dict[str, str], seed: int) -> None:
        self.paths = sorted(root.glob("*/train/good/*.png"))
        if not self.paths:
            raise ValueError(
                f"--data-root {root}: no <class>/train/good/*.png below it; point it at a folder of MVTec-AD's layout"
            )
        self.images = [read_stretched(path) for path in self.paths]
        self.descriptions = descriptions
        self.seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Set what the random numbers of the coming epoch depend on."""
        self.epoch = epoch
        self.previous: Image = self.images[np.random.default_rng([self.seed, epoch]).integers(len(self.images))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Sample]:
        path, image = self.paths[index], self.images[index]
        class_name = path.parts[-4]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        anomaly = add_anomalies(image, self.previous, class_name, rng)
        self.previous = image
        return [
            Sample(
                normalised(image),
                class_name,
                inspection(class_name, [], self.descriptions),
                torch.zeros(IMAGE_SIDE, IMAGE_SIDE),
                path,
            ),
            Sample(
                normalised(anomaly.image),
                class_name,
                inspection(class_name, anomaly.places, self.descriptions),
                torch.from_numpy(anomaly.label),
                path,
            ),
        ]


class InstructionDataset(Dataset[list[Sample]]):
    """PandaGPT's instruction data: ``[{"image_name": .., "conversation": [{"from": .., "value": ..}, ..]}, ..]``."""

    def __init__(self, file: Path, images: Path) -> None:
        if not file.is_file():
            raise ValueError(f"--sft-json {file}: no such file")
        self.images = images
        self.rows: list[dict[str, Any]] = json.loads(file.read_text())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[Sample]:
        row = self.rows[index]
        turns = [Turn(speaker=turn["from"], value=turn["value"]) for turn in row["conversation"][:KEPT_TURNS]]
        image = read_cropped(self.images / f"{row['image_name']}.jpg")
        return [Sample(normalised(image), ANY_OBJECT, turns)]


class RankSlices(Sampler[list[int]]):
    """The same permutation on every rank, cut into batches of all ranks, of which each takes its own run of items."""

    def __init__(self, length: int, micro_batch: int, rank: int, ranks: int, seed: int) -> None:
        if length < micro_batch * ranks:
            raise ValueError(
                f"{length} items are too few for {ranks} ranks of micro-batch {micro_batch}; "
                f"lower --micro-batch or the number of ranks"
            )
        self.length, self.micro_batch, self.rank, self.ranks = length, micro_batch, rank, ranks
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.length // (self.micro_batch * self.ranks)

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = torch.randperm(self.length, generator=self.generator).tolist()
        stride = self.micro_batch * self.ranks
        for start in range(self.rank * self.micro_batch, len(self) * stride, stride):
            yield order[start : start + self.micro_batch]


def loader(
    dataset: Dataset[list[Sample]], sampler: RankSlices, workers: int, collate_items: Callable[..., Batch] = collate
) -> DataLoader[list[Sample]]:
    """Not pinned, and with workers that are started anew every epoch, as the original has it."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate_items,
        worker_init_fn=one_thread,
        # its own generator: drawing the workers' seeds must not move the numbers that training draws
        generator=torch.Generator().manual_seed(0),
    )


def one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)
