"""Each of the original's habits is there, and its switch takes it away without changing what is learned."""

import argparse
import contextlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agprof_workloads.anomalygpt import train
from agprof_workloads.anomalygpt.data import Batch
from agprof_workloads.anomalygpt.model import AnomalyGPT, Outcome, choose_trainable
from agprof_workloads.anomalygpt.prompts import inspection
from agprof_workloads.anomalygpt.sizes import TINY
from agprof_workloads.anomalygpt.switches import NAMES, WHAT, Switches, chosen, flag
from agprof_workloads.anomalygpt.tokenizer import HashSentenceTokenizer, HashTokenizer

ALL = Switches(**dict.fromkeys(NAMES, True))


def a_model(switches: Switches) -> AnomalyGPT:
    torch.manual_seed(0)
    model = AnomalyGPT(TINY, HashSentenceTokenizer(512), HashTokenizer(512), longest_text=40, switches=switches).eval()
    choose_trainable(model, ["decoder", "prompt"])
    return model


def a_pair(root: Path) -> Batch:
    """A normal and a synthetic image of one class, as an item of the MVTec data brings them."""
    masks = torch.zeros(2, 224, 224)
    masks[1, 50:90, 50:90] = 1
    path = root / "mvtec" / "brick" / "train" / "good" / "003.png"
    return Batch(
        images=torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)),
        class_names=["brick", "brick"],
        conversations=[inspection("brick", [], {}), inspection("brick", ["top left"], {})],
        masks=masks,
        paths=[path, path],
    )


@pytest.fixture
def pair(miniature_root: Path) -> Batch:
    return a_pair(miniature_root)


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the coin show this number: below one half is the memory bank."""
    return lambda value: monkeypatch.setattr("random.random", lambda: value)


class Calls(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def images_encoded(model: AnomalyGPT) -> list[int]:
    """Batch sizes of the calls of the vision trunk from here on."""
    seen: list[int] = []
    trunk = model.visual_encoder.modality_trunks["vision"]
    trunk.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    return seen


def sentences_encoded(model: AnomalyGPT) -> list[int]:
    seen: list[int] = []
    stem = model.visual_encoder.modality_preprocessors["text"]
    stem.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    return seen


def run(model: AnomalyGPT, batch: Batch) -> tuple[Outcome, str]:
    """What came out, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        outcome = model(batch)
    return outcome, said.getvalue()


def test_text_is_encoded_per_image_and_step_per_class_and_step_or_once(pair: Batch, coin: Any) -> None:
    coin(0.9)
    counts = {}
    for name in ("", "encode_class_once", "cache_text"):
        model = a_model(Switches(**({name: True} if name else {})))
        seen = sentences_encoded(model)
        for _step in range(2):
            run(model, pair)
        counts[name] = seen
    assert counts[""] == [28, 20, 28, 20]
    assert counts["encode_class_once"] == [14, 10, 14, 10]
    assert counts["cache_text"] == [14, 10]


def test_the_bank_encodes_eight_images_and_the_query_again(pair: Batch, coin: Any) -> None:
    for switches, expected in (
        (Switches(), [2, 8, 2]),
        (Switches(reuse_taps=True), [2, 8]),
        (Switches(cache_bank=True), [2, 4, 2]),
        (Switches(steady_bank=True), [2, 4, 1]),
        (Switches(steady_bank=True, reuse_taps=True), [2, 4]),
    ):
        coin(0.1)
        model = a_model(switches)
        seen = images_encoded(model)
        run(model, pair)
        assert seen == expected, switches


def test_the_bank_comes_in_some_steps_or_in_all(pair: Batch, coin: Any) -> None:
    for switches, kinds in ((Switches(), 2), (Switches(steady_bank=True), 1)):
        model = a_model(switches)
        seen = images_encoded(model)
        costs = set()
        for number in (0.1, 0.9):
            coin(number)
            seen.clear()
            run(model, pair)
            costs.add(sum(seen))
        assert len(costs) == kinds


def test_a_remembered_bank_is_not_encoded_again(pair: Batch, coin: Any) -> None:
    coin(0.1)
    model = a_model(Switches(cache_bank=True, reuse_taps=True))
    seen = images_encoded(model)
    for _step in range(3):
        run(model, pair)
    assert seen == [2, 4, 2, 2]


def test_values_are_read_back_four_times_per_micro_step_or_once_per_step(pair: Batch, coin: Any) -> None:
    coin(0.9)
    counts = {}
    for late in (False, True):
        model, outcomes = a_model(Switches(read_per_step=late)), train.Outcomes(late)
        with Calls() as calls:
            for _micro_step in range(2):
                outcomes.note(run(model, pair)[0])
            losses, accuracies = outcomes.read()
        assert len(losses) == len(accuracies) == 2
        assert all(isinstance(value, float) for value in losses + accuracies)
        counts[late] = calls.operations["_local_scalar_dense"]
    # transformers reads two of its own per forward
    assert counts == {False: 12, True: 4}


def test_the_focal_loss_goes_through_the_host_once_per_layer(
    pair: Batch, coin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    coin(0.9)
    trips = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: trips.append(1) or original(self))
    for switches, expected in ((Switches(), 4), (Switches(focal_on_device=True), 0)):
        trips.clear()
        run(a_model(switches), pair)
        assert len(trips) == expected


def test_a_line_per_sample_and_the_banks_paths_are_printed_or_not(pair: Batch, coin: Any) -> None:
    coin(0.1)
    said = run(a_model(Switches()), pair)[1].splitlines()
    assert [line.split(":")[0] for line in said] == ["texts", "texts", "normal_paths"]
    assert run(a_model(Switches(quiet=True)), pair)[1] == ""


@pytest.mark.parametrize("number", [0.1, 0.9])
@pytest.mark.parametrize(
    "name", ["cache_text", "encode_class_once", "reuse_taps", "cache_bank", "focal_on_device", "read_per_step", "quiet"]
)
def test_a_switch_changes_no_loss_and_no_gradient(name: str, number: float, pair: Batch, coin: Any) -> None:
    coin(number)
    faithful, mended = a_model(Switches()), a_model(Switches(**{name: True}))
    ours, theirs = run(faithful, pair)[0], run(mended, pair)[0]
    # a batch of another size may be summed in another order
    tolerance = 1e-5 if name in ("cache_text", "encode_class_once", "cache_bank") else 0
    assert theirs.loss.item() == pytest.approx(ours.loss.item(), rel=tolerance, abs=0)
    assert float(theirs.accuracy) == pytest.approx(float(ours.accuracy))
    ours.loss.backward()
    theirs.loss.backward()
    others = dict(mended.named_parameters())
    for key, parameter in faithful.named_parameters():
        assert (parameter.grad is None) == (others[key].grad is None)
        if parameter.grad is not None and others[key].grad is not None:
            torch.testing.assert_close(others[key].grad, parameter.grad, rtol=10 * tolerance, atol=tolerance)


def test_the_steady_bank_replaces_the_map_of_the_half_that_the_coin_says(pair: Batch, coin: Any) -> None:
    coin(0.1)
    faithful, steady = a_model(Switches()), a_model(Switches(steady_bank=True))
    bank = faithful.with_memory_bank(torch.zeros(2, 224, 224), pair.images, [], pair.paths or [])
    for number, replaced in ((0.1, 1), (0.9, 0)):
        coin(number)
        taps = steady.visual_encoder.vision(pair.images)[1]
        mixed = steady.with_memory_bank(torch.full((2, 224, 224), 7.0), pair.images, taps, pair.paths or [])
        assert torch.allclose(mixed[replaced], bank[replaced], atol=1e-5)
        assert torch.equal(mixed[1 - replaced], torch.full((224, 224), 7.0))


# -- the command line --------------------------------------------------------------------------------------------------


def test_nothing_is_mended_unless_asked_for() -> None:
    assert chosen(train.parse([])) == Switches()
    assert not any(getattr(Switches(), name) for name in NAMES)


def test_one_flag_each_and_one_for_all() -> None:
    assert set(WHAT) == {field.name for field in fields(Switches)}
    for name in NAMES:
        alone = Switches(**{name: True})
        assert chosen(train.parse([f"--{flag(name)}"])) == alone
        assert chosen(train.parse(["--fixed", flag(name)])) == alone
    assert chosen(train.parse(["--fixed"])) == ALL
    assert chosen(train.parse(["--fixed", "none", "--quiet"])) == Switches(quiet=True)
    assert chosen(train.parse(["--fixed", "cache-text,quiet"])) == Switches(cache_text=True, quiet=True)


def test_a_switch_that_there_is_not_is_named() -> None:
    options: argparse.Namespace = train.parse(["--fixed", "cache-test"])
    with pytest.raises(ValueError, match=r"--fixed: unknown switch 'cache-test'; choose from cache-text, "):
        chosen(options)


def test_unused_towers_are_held_at_full_size_as_in_the_original() -> None:
    assert train.parse(["--preset", "full"]).unused_towers is True
    assert train.parse(["--preset", "full", "--no-unused-towers"]).unused_towers is False
    assert train.parse([]).unused_towers is False
    assert train.parse(["--unused-towers"]).unused_towers is True
