import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agprof_workloads.anomalygpt import miniature as module
from agprof_workloads.anomalygpt.miniature import CLASSES, DEFECTS, miniature


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_layout_is_mvtecs(miniature_root: Path) -> None:
    root = miniature_root / "mvtec"
    assert sorted(path.name for path in root.iterdir()) == sorted(CLASSES)
    found = sorted(str(path.relative_to(root)) for path in root.glob("*/*/*/*.png"))
    expected = [f"{name}/train/good/{n:03}.png" for name in CLASSES for n in range(8)]
    expected += [f"{name}/test/good/{n:03}.png" for name in CLASSES for n in range(4)]
    expected += [f"{name}/test/{defect}/{n:03}.png" for name in CLASSES for defect in DEFECTS for n in range(4)]
    expected += [
        f"{name}/ground_truth/{defect}/{n:03}_mask.png" for name in CLASSES for defect in DEFECTS for n in range(4)
    ]
    assert found == sorted(expected)


def test_every_image_is_256_pixels_and_every_mask_marks_a_small_region(miniature_root: Path) -> None:
    for path in (miniature_root / "mvtec").glob("*/t*/*/*.png"):
        assert pixels(path).shape == (256, 256, 3)
    for path in (miniature_root / "mvtec").glob("*/ground_truth/*/*.png"):
        mask = pixels(path)
        assert set(np.unique(mask)) == {0, 255}
        assert 0.003 < (mask > 0).mean() < 0.08


def test_training_images_differ_from_one_another(miniature_root: Path) -> None:
    for name in CLASSES:
        seen = {path.read_bytes() for path in (miniature_root / "mvtec" / name / "train" / "good").iterdir()}
        assert len(seen) == 8


def test_instructions_point_at_photographs(miniature_root: Path) -> None:
    rows = json.loads((miniature_root / "sft.json").read_text())
    assert len(rows) == 24
    for row in rows:
        assert (miniature_root / "images" / f"{row['image_name']}.jpg").is_file()
        assert [turn["from"] for turn in row["conversation"]] == ["human", "gpt"]


@pytest.mark.parametrize("defect", DEFECTS)
def test_damage_stays_inside_its_mask(defect: str) -> None:
    rng = np.random.default_rng(3)
    good = module.view(module.picture("gravel"), rng, texture=True)
    other = module.view(module.picture("coffee"), rng, texture=True)
    bad, mask = module.damage(good, other, defect, rng)
    moved = np.abs(good.astype(int) - bad.astype(int)).mean(axis=2)
    assert (moved[mask > 0] > 1).all()
    assert (moved[mask == 0] > 8).mean() < 0.01
    assert moved[mask > 0].mean() > 8


def test_processes_that_ask_at_once_get_one_finished_folder(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(miniature, [tmp_path, tmp_path])
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, f"{first.name}.lock"]
    assert len(list(first.glob("mvtec/*/train/good/*.png"))) == 48


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("done")
        raise OSError("disk full")

    monkeypatch.setattr(module, "build", fail)
    with pytest.raises(OSError, match="disk full"):
        miniature(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGPROF_CACHE", "/somewhere")
    assert module.cache_folder() == Path("/somewhere")
    monkeypatch.delenv("AGPROF_CACHE")
    assert module.cache_folder() == Path.home() / ".cache" / "agprof"
