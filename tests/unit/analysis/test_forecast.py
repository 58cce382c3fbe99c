"""Step time of other nodes and links: closed forms of the model, and properties that hold for any run."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.comm_models import PAYLOAD, Link, Network, fit_network, hops, link_of, wire
from agprof.analysis.forecast import Basis, Kind, basis, forecast, forecast_comparison, forecast_sides
from agprof.analysis.view import View, prepare
from agprof.model.figure import Figure
from agprof.model.forecast_answers import ForecastTarget
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import build_run

MS = 1e6
GIGABIT = 10**9
SIZE = 16 * 2**20
WIRE_NS = 8e9 / (GIGABIT * PAYLOAD)
"""Per byte at 1 Gbit/s."""
NETWORK = Network(
    hop_ns=0.2 * MS, hop_error_ns=0, byte_ns=WIRE_NS + 0.5, byte_error_ns=0, off=0.0, source="made up"
)  # fmt: skip


def transfer_ns(
    n: int, rate: float = GIGABIT, hop_ns: float = 0.2 * MS, own_ns: float = 0.5, size: int = SIZE
) -> float:
    """A ring all-reduce by hand."""
    return 2 * (n - 1) * hop_ns + 2 * (n - 1) / n * size * (own_ns + 8e9 / (rate * PAYLOAD))


def base(**changes: Any) -> Basis:
    """Two ranks on two nodes: 100 ms of compute, one exposed all-reduce of 16 MiB a step."""
    comm = transfer_ns(2)
    step = 100 * MS + comm
    fields: dict[str, Any] = {
        "label": "base", "ranks": 2, "nodes": 2, "backend": "gloo",
        "link": Link(rate_bits_per_s=GIGABIT, emulated=True, words="emulated link, 1gbit"),
        "step": Figure(value=step, unit="ns", source="measured", n=9, low=step - 2 * MS, high=step + 2 * MS),
        "compute_ns": 100 * MS, "optimizer_ns": 20 * MS, "in_flight_ns": comm, "exposed_ns": comm, "window_ns": 0.0,
        "kinds": (Kind(op="all_reduce", group_size=2, bytes=SIZE, calls=1.0, whole=True),),
        "network": NETWORK, "zero_stage": 0, "threads": 1, "cores": 4096,
    }  # fmt: skip
    return Basis(**(fields | changes))


def predicted(of: Basis, **target: Any) -> float:
    value = forecast(of, ForecastTarget(**target)).predicted.value
    assert value is not None
    return value


def test_the_same_setup_is_the_step_as_measured() -> None:
    for of in (base(), base(network=replace(NETWORK, hop_ns=9 * MS, byte_ns=3.0), exposed_ns=30 * MS)):
        here = of.compute_ns + of.exposed_ns
        assert predicted(of) == pytest.approx(here)
        assert predicted(of, nodes=2) == pytest.approx(here)


@pytest.mark.parametrize("rate", [50e6, 200e6, 1e9, 10e9])
def test_another_rate_changes_the_wire_alone(rate: float) -> None:
    assert predicted(base(), rate_bits_per_s=int(rate)) == pytest.approx(100 * MS + transfer_ns(2, rate))


@pytest.mark.parametrize("nodes", [2, 3, 4, 16, 256])
def test_more_nodes_are_a_longer_ring(nodes: int) -> None:
    assert predicted(base(), nodes=nodes) == pytest.approx(100 * MS + transfer_ns(nodes))


def test_delay_is_paid_at_each_hop() -> None:
    assert predicted(base(), nodes=4, delay_ns=int(MS)) == pytest.approx(100 * MS + transfer_ns(4, hop_ns=1.2 * MS))
    delayed = base(link=Link(rate_bits_per_s=GIGABIT, delay_ns=int(0.1 * MS), emulated=True))
    assert predicted(delayed, delay_ns=0) == pytest.approx(100 * MS + transfer_ns(2) - 2 * 0.1 * MS)


def test_one_rank_has_no_communication() -> None:
    row = forecast(base(), ForecastTarget(nodes=1))
    assert row.ranks == 1
    assert row.predicted.value == pytest.approx(100 * MS)


def test_ranks_of_one_node_have_no_link() -> None:
    assert predicted(base(), nodes=1, ranks_per_node=2) == pytest.approx(100 * MS + 2 * 0.2 * MS + SIZE * 0.5)


def test_emulated_nodes_share_the_cores() -> None:
    crowded = base(cores=2)
    own = 2 * 3 * 0.2 * MS + 1.5 * SIZE * 0.5
    assert predicted(crowded, nodes=4) == pytest.approx(200 * MS + own + transfer_ns(4))
    real = base(cores=2, link=Link(rate_bits_per_s=GIGABIT))
    assert predicted(real, nodes=4) == pytest.approx(100 * MS + transfer_ns(4))


def test_what_zero_divides_is_divided() -> None:
    assert predicted(base(zero_stage=1), nodes=4) == pytest.approx(90 * MS + transfer_ns(4))


def test_groups_that_are_not_all_ranks_stay_as_they_are() -> None:
    inner = Kind(op="all_reduce", group_size=2, bytes=SIZE, calls=1.0, whole=False)
    assert predicted(base(kinds=(inner,)), nodes=8) == pytest.approx(100 * MS + transfer_ns(2))


def test_a_network_of_unknown_rate_is_taken_for_the_link() -> None:
    unknown = base(link=Link(words="eth0"))
    assert predicted(unknown, rate_bits_per_s=GIGABIT // 2) == pytest.approx(
        100 * MS + transfer_ns(2) + SIZE * (2 * WIRE_NS - WIRE_NS - 0.5)
    )
    assert predicted(unknown, nodes=4) == pytest.approx(100 * MS + transfer_ns(4))


def test_a_link_has_to_be_known() -> None:
    one_node = base(nodes=1, link=Link(), network=replace(NETWORK, byte_ns=0.5))
    figure = forecast(one_node, ForecastTarget(nodes=2)).predicted
    assert figure.value is None
    assert "give its rate" in str(figure.reason)
    known = forecast(one_node, ForecastTarget(nodes=2, ranks_per_node=1, rate_bits_per_s=GIGABIT)).predicted
    assert known.value == pytest.approx(100 * MS + transfer_ns(2) + SIZE * WIRE_NS)


def test_hidden_communication_stays_hidden_as_far_as_it_can() -> None:
    half = base(exposed_ns=transfer_ns(2) / 2, window_ns=transfer_ns(2) * 0.75)
    slower = transfer_ns(2, 1e9 / 10)
    assert predicted(half, rate_bits_per_s=10**8) == pytest.approx(100 * MS + slower - 0.75 * transfer_ns(2))
    faster = transfer_ns(2, 2e9)
    assert predicted(half, rate_bits_per_s=2 * GIGABIT) == pytest.approx(100 * MS + faster / 2)


def test_the_interval_holds_the_fits_error_and_the_steps_spread() -> None:
    row = forecast(base(network=replace(NETWORK, off=0.1)), ForecastTarget(rate_bits_per_s=GIGABIT // 5)).predicted
    value, step = row.value or 0.0, base().step.value or 0.0
    more = transfer_ns(2, 2e8) - transfer_ns(2)
    assert row.high == pytest.approx(value + math.hypot(2 * MS * value / step, 1.96 * 0.1 * more))
    assert row.low == pytest.approx(value - math.hypot(2 * MS * value / step, 1.96 * 0.1 * more))


rates = st.integers(10**6, 10**12)
bases = st.builds(
    lambda hidden, window, size, n, own: base(
        ranks=n,
        nodes=n,
        exposed_ns=transfer_ns(2) * (1 - hidden),
        window_ns=window * MS,
        kinds=(Kind(op="all_reduce", group_size=n, bytes=size, calls=2.0, whole=True),),
        network=replace(NETWORK, byte_ns=WIRE_NS + own),
    ),
    st.floats(0, 1), st.floats(0, 1000), st.integers(0, 2**34), st.integers(2, 64), st.floats(0, 100),
)  # fmt: skip


@given(bases, rates, rates)
def test_a_faster_link_never_makes_a_longer_step(of: Basis, one: int, other: int) -> None:
    slow, fast = predicted(of, rate_bits_per_s=min(one, other)), predicted(of, rate_bits_per_s=max(one, other))
    assert fast <= slow * (1 + 1e-9)
    assert fast >= of.compute_ns * (1 - 1e-9)


@given(st.integers(0, 2**34), st.integers(0, 2**34), st.integers(2, 64), rates)
def test_more_bytes_never_make_a_shorter_step_on_a_slower_link(one: int, other: int, nodes: int, rate: int) -> None:
    times = [
        predicted(
            base(kinds=(Kind(op="all_gather", group_size=2, bytes=size, calls=1.0, whole=True),)),
            nodes=nodes, rate_bits_per_s=min(rate, GIGABIT),
        )
        for size in sorted((one, other))
    ]  # fmt: skip
    assert times[0] <= times[1] * (1 + 1e-9)


@given(bases, st.integers(1, 64), st.integers(1, 64))
def test_more_nodes_never_make_a_shorter_step(of: Basis, one: int, other: int) -> None:
    few, many = predicted(of, nodes=min(one, other)), predicted(of, nodes=max(one, other))
    assert few <= many * (1 + 1e-9)


def test_hops_and_wire_bytes_are_those_of_the_algorithms() -> None:
    assert [hops(op, 5, "nccl") for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")] == [8, 4, 4, 4]
    assert wire("broadcast", 5, "gloo") == 3
    assert wire("broadcast", 5, "nccl") == 1
    assert wire("reduce_scatter", 5, "gloo") == wire("all_reduce", 5, "gloo")
    assert wire("barrier", 5, "gloo") == 0
    for op in ("all_reduce", "all_gather", "broadcast", "send"):
        assert hops(op, 1, "gloo") == wire(op, 1, "gloo") == 0


def test_a_network_is_found_from_several_operations_at_once() -> None:
    true = {"all_reduce": 4, "broadcast": 3, "all_gather": 2}
    points = [
        (op, n, size, hops(op, n, "gloo") * 1e5 + wire(op, n, "gloo") * size * 3.0)
        for op, n in true.items()
        for size in (1e3, 1e5, 1e7)
    ]
    found = fit_network(points, "gloo", "x")
    assert found is not None
    assert (found.hop_ns, found.byte_ns) == pytest.approx((1e5, 3.0), rel=1e-6)
    assert found.off == pytest.approx(0, abs=1e-6)
    assert fit_network(points[:2], "gloo", "x") is None


# -- from runs --------------------------------------------------------------------------------------------------------


def view(path: Path, section: Any = None, **options: Any) -> View:
    run = build_run(path, **options)
    if section is not None:
        manifest = json.loads((run / layout.MANIFEST).read_text())
        manifest |= {"setup_section": section, "link": "emulated link"}
        (run / layout.MANIFEST).write_text(json.dumps(manifest))
    return prepare(read_run(run))


def test_a_run_is_forecast_from_its_own_collectives(tmp_path: Path) -> None:
    emulated = {"emulate": {"nodes": 2, "rate": "1gbit"}}
    one = view(tmp_path / "one", emulated, nodes=2, transfer_ms=40.0, jitter=0.0)
    found = basis(one, "one")
    assert found is not None
    assert found.link == Link(rate_bits_per_s=GIGABIT, emulated=True, words="emulated link")
    assert found.step.value == pytest.approx(found.compute_ns + found.exposed_ns)
    assert [(kind.op, kind.calls) for kind in found.kinds] == [("all_gather", 1.0), ("all_reduce", 12.0)]
    total = sum(kind.calls * wire(kind.op, 2, "gloo") * kind.bytes for kind in found.kinds)
    more = total * (5 - 1) * WIRE_NS
    assert predicted(found, rate_bits_per_s=GIGABIT // 5) == pytest.approx((found.step.value or 0) + more, rel=1e-6)


def test_sides_are_held_against_the_model(tmp_path: Path) -> None:
    one = view(tmp_path / "one", {"emulate": {"rate": "1gbit"}}, nodes=2)
    slow = view(tmp_path / "slow", {"emulate": {"rate": "200mbit"}}, nodes=2, transfer_ms=200.0)
    answer = forecast_sides([("one", [one]), ("slow", [slow])])
    assert answer is not None
    assert [row.label for row in answer.rows] == ["slow", "4 nodes, 4 ranks", "8 nodes, 8 ranks", "16 nodes, 16 ranks"]
    assert answer.rows[0].measured is not None
    assert "predicts what was measured to within" in answer.sentence
    assert forecast_comparison([("one", [one]), ("slow", [slow])], 1) is not None
    assert forecast_comparison([("one", [one]), ("again", [one])], 0) is None


def test_one_rank_alone_says_what_is_missing(tmp_path: Path) -> None:
    alone = view(tmp_path / "run", ranks=1)
    answer = forecast_sides([("alone", [alone])], ForecastTarget(nodes=4, rate_bits_per_s=GIGABIT))
    assert answer is not None
    assert answer.rows[0].predicted.value is not None or "rank" in str(answer.rows[0].predicted.reason)


def test_a_run_without_steps_has_no_forecast(tmp_path: Path) -> None:
    assert forecast_sides([("none", [view(tmp_path / "run", steps=0)])], ForecastTarget(nodes=4)) is None
    assert forecast_sides([]) is None


@pytest.mark.parametrize(
    "section", [7, [], {"emulate": 7}, {"emulate": {"rate": "warp", "delay": []}}, {"emulate": {}}]
)
def test_a_hostile_manifest_is_a_link_that_is_not_known(section: Any, tmp_path: Path) -> None:
    link = link_of(view(tmp_path / "run", section))
    assert (link.rate_bits_per_s, link.delay_ns) == (None, None)
