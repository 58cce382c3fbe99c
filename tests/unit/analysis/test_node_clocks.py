"""One clock for all nodes: what was put into the records comes out within the uncertainty that is stated."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from agprof.analysis.clock_axis import ClockAxis, ClockPiece, common_column
from agprof.analysis.clock_fit import MAX_DRIFT, Ping, fit
from agprof.analysis.clock_quality import clock_notes, clock_problems
from agprof.analysis.clocks import answer
from agprof.analysis.run import analyse
from agprof.analysis.view import View, prepare
from agprof.model.clock_answers import ClockAnswer, NodeClock
from agprof.store.reader import Run, read_run
from clock_rows import SECOND_NS, Clock, bursts, ping, uneven, with_clock, with_pings
from synthetic import BOOT_NS, EPOCH_NS, build_run

TWO_HOURS_NS = 7_200_000_000_000
MINUTE_NS = 60 * SECOND_NS
RunMaker = Callable[..., Run]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two nodes of two ranks; about 2 s of steps."""
    return read_run(build_run(tmp_path_factory.mktemp("clocks") / "run", ranks=4, nodes=2, steps=12))


def _clocks(run: Run) -> tuple[View, ClockAnswer, NodeClock]:
    view = prepare(run)
    found = answer(view.clocks, view.origin_ns)
    assert found is not None
    return view, found, found.nodes[1]


def _end(run: Run) -> int:
    """Last true time of the run: that of node 0, whose clock is the reference."""
    return int(run.tables["steps"].filter(pl.col("rank") == 0)["end_ns"].max())  # type: ignore[arg-type]


def _largest_error(run: Run, view: View, clock: Clock) -> int:
    """Of the times of node 1's ranks put on the axis, against true time."""
    errors = []
    for true_ns in range(BOOT_NS, _end(run), 50_000_000):
        errors.append(abs(view.since_origin(clock.shown(true_ns), node=1) + view.origin_ns - true_ns))
    return max(errors)


# -- acceptance: offset and drift, NTP, impossible sets ---------------------------------------------------------------


@pytest.mark.parametrize("offset_ns", [TWO_HOURS_NS, -TWO_HOURS_NS, 0])
@pytest.mark.parametrize("drift", [2e-4, -2e-4])
def test_two_hours_and_200_ppm_come_out_within_the_stated_uncertainty(plain: Run, offset_ns: int, drift: float) -> None:
    clock = Clock(offset_ns=offset_ns, drift=drift)
    run = with_clock(plain, clock)
    run = with_pings(run, bursts(clock, [BOOT_NS - SECOND_NS, _end(plain) + SECOND_NS], uneven(7, most_ns=200_000)))
    view, found, node = _clocks(run)
    assert found.state == "reconciled", found.sentence
    assert node.uncertainty_ns is not None
    assert 0 < node.uncertainty_ns < 500_000
    assert _largest_error(plain, view, clock) <= node.uncertainty_ns
    assert node.drift.low is not None
    assert node.drift.high is not None
    assert node.drift.low <= 1 / (1 + drift) - 1 <= node.drift.high
    local = clock.shown(view.origin_ns)
    assert node.offset.low is not None
    assert node.offset.high is not None
    assert node.offset.low - 2 <= view.origin_ns - local <= node.offset.high + 2


def test_the_order_of_collectives_is_that_of_one_clock(plain: Run) -> None:
    clock = Clock(offset_ns=TWO_HOURS_NS, drift=2e-4)
    run = with_pings(with_clock(plain, clock), bursts(clock, [BOOT_NS, _end(plain)]))
    view, found, _ = _clocks(run)
    assert found.checked == 12 * 13
    assert found.conflicts == ()
    before, _, _ = _clocks(with_pings(with_clock(plain, Clock()), bursts(Clock(), [BOOT_NS, _end(plain)])))
    columns = ("start_ns", "end_ns")

    def on_axis(view: View) -> list[tuple[int, ...]]:
        calls = view.tables["collectives"].with_columns(view.column_since_origin(name) for name in columns)
        return calls.sort("rank", "step", "start_ns").select("rank", *columns).rows()

    for (rank, start, end), (same, true_start, true_end) in zip(on_axis(view), on_axis(before), strict=True):
        assert rank == same
        assert abs(start - true_start) <= 30_000
        assert abs(end - true_end) <= 30_000


def test_everything_of_a_run_comes_out_as_with_one_clock(plain: Run) -> None:
    """Step times, phases and waits are those of the undisturbed run, to the drift of 200 ppm."""
    clock = Clock(offset_ns=TWO_HOURS_NS, drift=2e-4)
    moved = analyse(with_pings(with_clock(plain, clock), bursts(clock, [BOOT_NS, _end(plain)])))
    still = analyse(plain)
    assert moved.clocks is not None
    assert moved.clocks.state == "reconciled"
    for one, other in zip(moved.time.steps, still.time.steps, strict=True):
        assert (one.rank, one.step, one.kind) == (other.rank, other.step, other.kind)
        assert one.start_ns == pytest.approx(other.start_ns, abs=40_000)
        assert one.duration_ns == pytest.approx(other.duration_ns, rel=2.1e-4)


def test_samples_and_energy_of_a_node_are_put_on_the_same_axis(tmp_path: Path) -> None:
    """A longer run with GPUs: curves, energy and its windows are those of one clock."""
    plain = read_run(
        build_run(tmp_path / "run", ranks=2, nodes=2, steps=120, gpus=1, profile_step=None, fast=True, collectives=1)
    )
    clock = Clock(offset_ns=-TWO_HOURS_NS, drift=2e-4)
    times = [BOOT_NS, _end(plain)]
    moved = analyse(with_pings(with_clock(plain, clock), bursts(clock, times)))
    still = analyse(with_pings(with_clock(plain, Clock()), bursts(Clock(), times)))
    assert len(moved.system.curves) == len(still.system.curves) > 0
    for one, other in zip(moved.system.curves, still.system.curves, strict=True):
        assert (one.label, one.node) == (other.label, other.node)
        assert one.x_ns == pytest.approx(other.x_ns, abs=40_000)
    assert moved.energy is not None
    assert still.energy is not None
    assert still.energy.steady.value is not None
    assert moved.energy.run.value == pytest.approx(still.energy.run.value, rel=1e-3)
    assert moved.energy.steady.value == pytest.approx(still.energy.steady.value, rel=1e-3)


def test_a_step_of_the_wall_clock_moves_nothing_and_is_counted(plain: Run) -> None:
    clock = Clock(drift=5e-5)
    rows = [
        ping(clock, true_ns, 20_000, 20_000, real_ns=clock.shown(true_ns) + (0 if number < 2 else -3 * SECOND_NS))
        for number, true_ns in enumerate(range(BOOT_NS, _end(plain), SECOND_NS // 2))
    ]
    run = with_pings(with_clock(plain, clock), rows)
    told = {"realtime_ns": clock.shown(BOOT_NS), "monotonic_ns": clock.shown(BOOT_NS)}
    streams = [replace(s, header={**s.header, "clock": told}) if s.header["node"] == 1 else s for s in run.streams]
    run = replace(run, streams=tuple(streams))
    view, found, node = _clocks(run)
    assert node.wall_clock_steps == 1
    assert found.state == "reconciled"
    assert node.uncertainty_ns is not None
    assert _largest_error(plain, view, clock) <= node.uncertainty_ns
    assert any("node 1 was set 1 time" in note for note in clock_notes(view))


def test_a_jump_of_a_monotonic_clock_is_refused(plain: Run) -> None:
    middle = (BOOT_NS + _end(plain)) // 2
    clock = Clock(jump_ns=SECOND_NS, jump_at_ns=middle)
    run = with_pings(with_clock(plain, clock), bursts(clock, range(BOOT_NS, _end(plain), SECOND_NS // 4)))
    view, found, _ = _clocks(run)
    assert found.state == "refused"
    assert "node 1 jumped by 1.00 s" in found.sentence
    assert not view.one_axis
    assert view.apart is not None
    assert list(clock_problems(view)) == [found.sentence]


def test_pings_that_the_collectives_contradict_are_refused(plain: Run) -> None:
    """The pings say the same clock; the records are two hours off."""
    run = with_pings(with_clock(plain, Clock(offset_ns=TWO_HOURS_NS)), bursts(Clock(), [BOOT_NS, _end(plain)]))
    _, found, _ = _clocks(run)
    assert found.state == "refused"
    assert found.conflicts
    assert found.conflicts[0].by_ns == pytest.approx(TWO_HOURS_NS, rel=1e-3)
    assert "can't be brought onto one axis" in found.sentence
    assert "Times of different nodes are not compared" in found.sentence


def test_wall_clocks_that_are_two_hours_apart_are_refused(plain: Run) -> None:
    streams = [
        replace(s, header={**s.header, "clock": {**s.header["clock"], "realtime_ns": EPOCH_NS + TWO_HOURS_NS}})
        if s.header["node"] == 1
        else s
        for s in plain.streams
    ]
    view, found, node = _clocks(replace(plain, streams=tuple(streams)))
    assert node.method == "wall clocks"
    assert found.state == "refused"
    # Each node's times begin with its own first step.
    assert view.since_origin(int(plain.tables["steps"].filter(pl.col("rank") == 2)["start_ns"].min()), rank=2) == 0  # type: ignore[arg-type]
    assert view.since_origin(int(plain.tables["steps"].filter(pl.col("rank") == 0)["start_ns"].min()), rank=0) == 0  # type: ignore[arg-type]
    found_run = analyse(replace(plain, streams=tuple(streams)))
    assert max(step.start_ns for step in found_run.time.steps) < 60 * SECOND_NS
    assert any("can't be brought onto one axis" in problem for problem in found_run.quality.problems)


@pytest.mark.parametrize("far", [2**63 - 1, -(2**63), 2**62])
def test_damaged_clocks_are_left_out(plain: Run, far: int) -> None:
    good = bursts(Clock(), [BOOT_NS, _end(plain)])
    middle = good[0][0]
    bad = [(far, middle, 10, 0, None, 64), (middle, far, 10, 0, None, 64), (middle, middle, -1, 0, far, 64)]
    run = with_pings(with_clock(plain, Clock()), [*good, *bad])
    told = {"realtime_ns": far, "monotonic_ns": -far}
    run = replace(run, streams=tuple(replace(s, header={**s.header, "clock": told}) for s in run.streams))
    view, found, node = _clocks(run)
    assert found.state == "reconciled"
    assert len(node.points) == 2
    assert _largest_error(plain, view, Clock()) <= (node.uncertainty_ns or 0)


def test_good_wall_clocks_are_used_and_doubted(plain: Run) -> None:
    view, found, node = _clocks(plain)
    assert found.state == "doubtful"
    assert node.uncertainty_ns is None
    assert node.drift.value is None
    assert node.drift.reason
    assert found.conflicts == ()
    assert _largest_error(plain, view, Clock(offset_ns=7_000_000_000_000)) == 0
    assert any("wall clocks" in note for note in clock_notes(view))


def test_one_node_has_no_clocks_and_is_left_as_it_is(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ranks=2))
    view = prepare(run)
    assert answer(view.clocks, view.origin_ns) is None
    assert analyse(run).clocks is None
    time = pl.col("start_ns")
    steps = view.tables["steps"]
    assert steps.select(view.column_since_origin(time) + view.origin_ns).to_series().equals(steps["start_ns"])


# -- properties of the fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_uneven_ways_never_put_the_truth_outside(seed: int) -> None:
    """Whatever the delays of both ways: true offset and drift lie within what is stated."""
    random_ = random.Random(seed)
    clock = Clock(offset_ns=random_.randrange(-TWO_HOURS_NS, TWO_HOURS_NS), drift=random_.uniform(-2.5e-4, 2.5e-4))
    end = BOOT_NS + random_.randrange(SECOND_NS, 40 * MINUTE_NS)
    times = [BOOT_NS, *(t for t in range(BOOT_NS + MINUTE_NS, end, MINUTE_NS) if random_.random() < 0.8), end]
    rows = bursts(clock, times, uneven(seed, most_ns=random_.choice([20_000, 2_000_000, 80_000_000])))
    pings = [Ping(row[0], row[1] - row[0], row[2]) for row in rows]
    begin_ns, end_ns = clock.shown(BOOT_NS - 5 * SECOND_NS), clock.shown(end + 5 * SECOND_NS)
    lines = fit(pings, begin_ns, end_ns)
    assert len(lines) == 1
    line = lines[0]
    for true_ns in range(BOOT_NS - 5 * SECOND_NS, end + 5 * SECOND_NS, 7 * SECOND_NS):
        local = clock.shown(true_ns)
        low, high = line.bounds_at(local)
        assert low - 1 <= true_ns - local <= high + 1
        assert abs(line.offset_at(local) - (true_ns - local)) <= line.uncertainty_ns(local) + 1
    for one in pings:
        assert abs(line.offset_at(one.local_ns) - one.offset_ns) <= one.uncertainty_ns + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_line_has_the_smallest_largest_error_of_all(seed: int) -> None:
    """At both ends of the run what is possible reaches equally far above and below it."""
    pings = [Ping(row[0], row[1] - row[0], row[2]) for row in bursts(Clock(drift=1e-4), range(
        BOOT_NS, BOOT_NS + 10 * MINUTE_NS, MINUTE_NS), uneven(seed))]  # fmt: skip
    begin, end = pings[0].local_ns - SECOND_NS, pings[-1].local_ns + SECOND_NS
    (line,) = fit(pings, begin, end)
    for time in (begin, end):
        low, high = line.bounds_at(time)
        assert abs((line.offset_at(time) - low) - (high - line.offset_at(time))) <= 3


def test_one_burst_leaves_the_drift_within_what_clocks_can_have() -> None:
    (line,) = fit([Ping(BOOT_NS, 5_000, 100)], BOOT_NS - SECOND_NS, BOOT_NS + 10 * SECOND_NS)
    assert line.offset_at(BOOT_NS) == 5_000
    assert line.uncertainty_ns(BOOT_NS + 10 * SECOND_NS) == pytest.approx(10 * SECOND_NS * MAX_DRIFT + 100, rel=1e-3)


def test_a_rate_that_changes_is_followed_by_several_lines(plain: Run) -> None:
    """50 ppm, then -50 ppm from the middle on: no line fits, two do, and times stay continuous and in order."""
    half = 10 * MINUTE_NS
    first, then = Clock(drift=5e-5), Clock(offset_ns=round(half * 5e-5), drift=-5e-5, zero_ns=BOOT_NS + half)

    def shown(true_ns: int) -> int:
        return (first if true_ns < BOOT_NS + half else then).shown(true_ns)

    rows = bursts(first, range(BOOT_NS, BOOT_NS + half, MINUTE_NS))
    rows += bursts(then, range(BOOT_NS + half, BOOT_NS + 2 * half, MINUTE_NS))
    run = with_pings(with_clock(plain, first), rows)
    view, found, node = _clocks(run)
    assert len(view.clocks.nodes[1].lines) == 2
    assert node.uncertainty_ns is not None
    # Nothing tells where between two pings the rate changed: at most 60 s x 100 ppm.
    assert node.uncertainty_ns < 6_200_000
    times = range(BOOT_NS, BOOT_NS + 2 * half, SECOND_NS)
    mapped = [view.since_origin(shown(true_ns), node=1) + view.origin_ns for true_ns in times]
    assert max(abs(one - true_ns) for one, true_ns in zip(mapped, times, strict=True)) <= node.uncertainty_ns
    assert mapped == sorted(mapped)
    assert found.state == "doubtful"


def test_the_mapping_of_columns_is_that_of_single_times(plain: Run) -> None:
    clock = Clock(offset_ns=-TWO_HOURS_NS, drift=-2e-4)
    view, _, _ = _clocks(with_pings(with_clock(plain, clock), bursts(clock, [BOOT_NS, _end(plain)])))
    calls = view.tables["collectives"]
    columns = calls.select("rank", "start_ns", mapped=view.column_since_origin("start_ns"))
    for rank, start, mapped in columns.iter_rows():
        assert mapped == view.since_origin(start, rank=rank)
    for time in range(-SECOND_NS, 3 * SECOND_NS, 77_777_777):
        local = view.local(time, node=1)
        assert view.since_origin(local, node=1) <= time < view.since_origin(local + 1, node=1)


@pytest.mark.parametrize("seed", range(30))
def test_axes_of_any_number_of_pieces_map_columns_exactly(seed: int) -> None:
    random_ = random.Random(seed)
    axes = {}
    for node in range(3):
        starts = sorted(random_.sample(range(0, 10**15, 10**7), random_.choice([1, 1, 4])))
        drift = 8_000_000_000
        axes[node] = ClockAxis(tuple(
            ClockPiece(start, random_.randrange(-(10**14), 10**14), random_.randrange(-drift, drift))
            for start in starts
        ))  # fmt: skip
    rows = [(random_.randrange(4), random_.randrange(-(10**16), 10**16)) for _ in range(200)]
    rows += [(node, piece.from_ns + more) for node, axis in axes.items() for piece in axis.pieces for more in (-1, 0)]
    frame = pl.DataFrame([*rows, (0, None)], schema={"node": pl.Int64, "at": pl.Int64}, orient="row")
    mapped = frame.select(common_column(axes, pl.col("node"), pl.col("at"))).to_series().to_list()
    assert mapped == [axes.get(node, ClockAxis()).common(at) for node, at in rows] + [None]
