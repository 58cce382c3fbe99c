"""Values read back from tensors, by the place in the job's code."""

import sys

import pytest
import torch

from agprof.instruments.op_places import Operation
from agprof.instruments.profile_step import ProfileStep
from agprof.instruments.readbacks import Readbacks


def line_of(function):
    return f"{function.__code__.co_firstlineno + 1} {function.__qualname__}"


def run(rig, *reads):
    """The profile step is step 0: `reads` in its forward. Returns {function of the job: (kind, calls)}."""
    object.__setattr__(rig.recorder.settings, "profile_step", 1)
    profile = ProfileStep(rig.recorder, torch)
    profile.add("readbacks", Readbacks(rig.recorder, torch))
    profile.arm()
    model = torch.nn.Linear(4, 4)
    profile.on_root(model)
    for step in range(3):
        out = model(torch.ones(2, 4))
        if step == 1:
            for read in reads:
                read(out)
        out.sum().backward()
        rig.recorder.end_micro_step()
        rig.recorder.end_step()
    tables = rig.finish()
    assert tables.get("faults", []) == []
    return tables.get("readbacks", [])


def an_item(x):
    return x[0, 0].item()


def a_truth(x):
    return bool((x > 0).any())


def a_number(x):
    return float(x.detach().sum())


def a_list(x):
    return x.detach().tolist()


def a_copy(x):
    return x.detach().cpu()


def an_array(x):
    return x.detach().numpy()


def a_mask(x):
    return x[x > 0]


def places(x):
    return x.nonzero()


def nothing(x):
    return x.shape, x.detach().to("cpu"), x.mean(), len(x)


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (an_item, "item"),
        (a_truth, "item"),
        (a_number, "item"),
        (a_list, "copy"),
        (a_copy, "copy"),
        (an_array, "copy"),
        (a_mask, "size"),
        (places, "size"),
    ],
)
def test_each_way_to_read_is_seen_once_at_its_line(read, kind, rig):
    (row,) = run(rig, read)
    assert (row.step, row.kind, row.calls, row.package) == (1, kind, 1, None)
    assert row.place.endswith(f"test_readbacks.py:{line_of(read)}")
    assert row.duration_ns > 0


def test_what_reads_nothing_back_gives_no_row(rig):
    assert run(rig, nothing) == []


def test_calls_of_a_place_are_added_up_and_the_most_frequent_comes_first(rig):
    rows = run(rig, an_item, a_copy, an_item, an_item)
    assert [(row.kind, row.calls) for row in rows] == [("item", 3), ("copy", 1)]


def test_only_the_profile_step_is_looked_at_and_nothing_stays(rig):
    before = dict(vars(torch.Tensor))
    run(rig, an_item)
    assert dict(vars(torch.Tensor)) == before


def test_what_our_own_instruments_read_is_not_counted(rig):
    from agprof.instruments.training import read_loss

    assert run(rig, lambda out: read_loss(torch, out.sum())) == []


def test_a_sampler_that_shuffles_on_the_host_is_not_counted(rig):
    def shuffled(_out):
        span = rig.recorder.open("phase", "data")
        torch.randperm(4).tolist()
        rig.recorder.close(span)

    assert run(rig, shuffled) == []


def test_an_installed_package_is_named_by_its_folder(rig, tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "somebody"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "norms.py").write_text("def norm(x):\n    return x.norm().item()\n")
    monkeypatch.syspath_prepend(str(package.parent))
    from somebody import norms

    (row,) = run(rig, norms.norm)
    assert (row.place, row.package) == ("somebody/norms.py:2 norm", "somebody")
    sys.modules.pop("somebody.norms", None)
    sys.modules.pop("somebody", None)


def test_an_error_of_a_read_reaches_the_training_unchanged(rig):
    def wrong(out):
        with pytest.raises(RuntimeError, match="requires grad"):
            out.numpy()

    (row,) = run(rig, wrong)
    assert row.calls == 1


# -- on a device, which these tests have none of: operations as they would be seen ----------------------------------


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda", 0)


def on_device(*size):
    return torch.zeros(*size).as_subclass(OnDevice)


def kind_of(rig, function, args, result, **kwargs):
    operation = Operation(function, args, kwargs)
    operation.result = result
    return Readbacks(rig.recorder, torch)._kind(operation)


def test_copies_from_the_device_are_told_from_those_to_it_and_from_those_not_waited_for(rig):
    aten, here, there = torch.ops.aten, torch.zeros(2), on_device(2)
    assert kind_of(rig, aten._to_copy.default, (there,), here) == "copy"
    assert kind_of(rig, aten.copy_.default, (here, there), here) == "copy"
    assert kind_of(rig, aten._to_copy.default, (here,), there) is None
    assert kind_of(rig, aten._to_copy.default, (there,), there) is None
    assert kind_of(rig, aten._to_copy.default, (here,), here) is None
    assert kind_of(rig, aten._to_copy.default, (there,), here, non_blocking=True) is None
    assert kind_of(rig, aten.copy_.default, (here, there, True), here) is None


def test_indices_wait_only_when_they_are_a_mask(rig):
    index = torch.ops.aten.index.Tensor
    assert kind_of(rig, index, (on_device(4), [None, torch.zeros(4, dtype=torch.bool)]), on_device(2)) == "size"
    assert kind_of(rig, index, (on_device(4), [torch.zeros(4, dtype=torch.long)]), on_device(4)) is None


def test_a_time_that_is_not_known_of_one_call_is_not_known_of_the_sum(rig):
    readbacks = Readbacks(rig.recorder, torch)
    for duration_ns in (5, None, 7):
        readbacks._do_count("item", duration_ns)
    assert list(readbacks._found.values()) == [(3, None)]
