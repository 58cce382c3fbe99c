from pathlib import Path

import numpy as np
import pytest
import torch

from agprof_workloads.anomalygpt.anomalies import RECIPES, add_anomalies, object_mask, place_in_words
from agprof_workloads.anomalygpt.data import InstructionDataset, MvtecDataset, RankSlices, collate, loader
from agprof_workloads.anomalygpt.images import read_stretched
from agprof_workloads.anomalygpt.miniature import CLASSES


@pytest.fixture(scope="module")
def mvtec(miniature_root: Path) -> MvtecDataset:
    return MvtecDataset(miniature_root / "mvtec", {}, seed=42)


def test_anomalies_depend_on_their_seed_alone(mvtec: MvtecDataset) -> None:
    first, again, other = (
        add_anomalies(mvtec.images[0], mvtec.images[20], "brick", np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert first.places == again.places
    assert not np.array_equal(first.image, other.image)


def test_anomalies_are_real_and_of_sane_area(mvtec: MvtecDataset) -> None:
    areas = []
    for index, image in enumerate(mvtec.images):
        name = mvtec.paths[index].parts[-4]
        before = image.copy()
        made = add_anomalies(image, mvtec.images[index - 9], name, np.random.default_rng(index))
        assert np.array_equal(image, before)
        assert made.label.shape == (224, 224)
        assert made.label.min() >= 0 and made.label.max() <= 1
        assert len(made.places) in (1, 2)
        # a pixel that is labelled anomalous has changed
        changed = np.abs(made.image.astype(int) - image.astype(int)).sum(axis=2) > 0
        assert changed[made.label > 0.3].sum() >= 0.9 * (made.label > 0.3).sum()
        areas.append((made.label > 0.3).mean())
    assert 0.01 < np.mean(areas) < 0.15
    assert max(areas) < 0.5
    # blended onto alike ground, a patch may be all but invisible; that must stay the exception
    assert np.mean(np.array(areas) > 0.001) > 0.9


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_works_on_a_photograph_with_background(name: str) -> None:
    grey = {None: 120, 200: 200, 20: 20}[(RECIPES[name].background or (None,))[0]]
    rng = np.random.default_rng(1)
    image = np.full((224, 224, 3), grey, np.uint8)
    image[60:160, 60:160] = rng.integers(90, 130, (100, 100, 3))
    source = image[::-1, ::-1].copy()
    source[70:150, 70:150] = 110
    made = [add_anomalies(image, source, name, np.random.default_rng(seed)) for seed in range(8)]
    assert any(len(m.places) > 0 for m in made)
    if RECIPES[name].background is not None:
        assert object_mask(image, RECIPES[name]).sum() == 100 * 100


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ((0, 20), (0, 20), "top left"),
        ((0, 20), (100, 124), "top"),
        ((100, 124), (200, 224), "right"),
        ((100, 124), (100, 124), "center"),
        ((200, 224), (0, 20), "bottom left"),
        ((200, 224), (200, 224), "bottom right"),
    ],
)
def test_places_are_thirds_of_the_image(rows: tuple[int, int], columns: tuple[int, int], words: str) -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    assert place_in_words(mask) == words


def test_an_item_is_a_normal_image_and_an_anomalous_one(mvtec: MvtecDataset) -> None:
    mvtec.start_epoch(1)
    normal, anomalous = mvtec[0]
    assert normal.class_name == anomalous.class_name == "brick"
    assert normal.mask is not None and normal.mask.sum() == 0
    assert anomalous.mask is not None and anomalous.mask.max() > 0.3
    assert normal.conversation[1]["value"].startswith("No,")
    assert anomalous.conversation[1]["value"].startswith("Yes,")
    batch = collate([[normal, anomalous]])
    assert batch.images.shape == (2, 3, 224, 224)
    assert batch.masks is not None and batch.masks.shape == (2, 224, 224)
    assert batch.paths is not None and len(batch.paths) == 2


def test_loader_gives_the_same_in_this_process_and_in_a_worker(mvtec: MvtecDataset) -> None:
    sums = []
    for workers in (0, 1):
        mvtec.start_epoch(3)
        batches = loader(mvtec, RankSlices(len(mvtec), 4, 0, 2, seed=1), workers)
        sums.append([(b.images.double().sum().item(), b.masks.double().sum().item()) for b in batches])
    assert len(sums[0]) == 6
    assert sums[0] == sums[1]


def test_ranks_share_a_permutation_and_no_item() -> None:
    slices = [list(RankSlices(50, 3, rank, 4, seed=9)) for rank in range(4)]
    assert [len(batches) for batches in slices] == [4] * 4
    seen = [index for batches in slices for batch in batches for index in batch]
    assert len(seen) == len(set(seen)) == 48
    whole = torch.randperm(50, generator=torch.Generator().manual_seed(9)).tolist()
    assert [slices[rank][0] for rank in range(4)] == [whole[3 * rank : 3 * rank + 3] for rank in range(4)]


def test_too_few_items_for_the_ranks_is_said() -> None:
    with pytest.raises(ValueError, match="3 items are too few for 4 ranks"):
        RankSlices(3, 1, 0, 4, seed=0)


def test_instructions_have_neither_mask_nor_path(miniature_root: Path) -> None:
    data = InstructionDataset(miniature_root / "sft.json", miniature_root / "images")
    batch = collate([data[0], data[1]])
    assert batch.masks is None and batch.paths is None
    assert batch.class_names == ["object", "object"]
    assert [turn["speaker"] for turn in batch.conversations[0]] == ["human", "gpt"]


def test_a_folder_without_mvtec_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data-root .*train/good"):
        MvtecDataset(tmp_path, {}, seed=0)


def test_images_are_stretched_to_the_models_side(miniature_root: Path) -> None:
    image = read_stretched(miniature_root / "mvtec" / CLASSES[0] / "train" / "good" / "000.png")
    assert image.shape == (224, 224, 3) and image.dtype == np.uint8
