"""The live state of a node, what stands out in it, and one frame of it as text."""

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from agprof.analysis.live import LiveRank
from agprof.analysis.live_findings import live_findings
from agprof.analysis.live_node import LiveNode
from agprof.cli.top_screen import Frame, draw, held_down, spark
from agprof.model.tables import BY_NAME

SECOND = 10**9
GIB = 2**30


def row(table: str, **values: Any) -> tuple[Any, ...]:
    """A row of the table, None where nothing is given."""
    names = [column.name for column in BY_NAME[table].columns]
    assert set(values) <= set(names)
    return tuple(values.get(name) for name in names)


def node(**host: Any) -> LiveNode:
    live = LiveNode(0, "trainer1")
    live.fold("host_samples", [row("host_samples", time_ns=SECOND, period_ns=SECOND, **host)])
    return live


def gpu_node(number: int = 0, **state: Any) -> LiveNode:
    live = node(cpu_ratio=0.5)
    live.fold("gpu_states", [row("gpu_states", time_ns=SECOND, gpu=number, **state)])
    return live


def said(*nodes: LiveNode, ranks: tuple[LiveRank, ...] = (), now_ns: int | None = None) -> str:
    return "\n".join(live_findings(ranks, nodes, now_ns))


def rank(steps: int, step_ns: int = SECOND, number: int = 0) -> LiveRank:
    live = LiveRank(number)
    rows = [
        row("steps", step=i, start_ns=i * step_ns, end_ns=(i + 1) * step_ns, micro_steps=1, profiled=False)
        for i in range(steps)
    ]
    live.fold("steps", rows)
    return live


def test_the_newest_value_counts_and_a_failed_one_is_none_again() -> None:
    live = node(cpu_ratio=0.25, memory_used_bytes=GIB)
    assert live.host.number("cpu_ratio") == 0.25
    live.fold("host_samples", [row("host_samples", time_ns=2 * SECOND, period_ns=SECOND, memory_used_bytes=GIB)])
    assert live.host.number("cpu_ratio") is None
    assert live.host.number("memory_used_bytes") == GIB
    assert list(live.cpu) == [0.25, None]


def test_a_value_that_nobody_renews_goes_out() -> None:
    live = gpu_node(temperature_c=60)
    gpu = live.gpus[0]
    for second in range(2, 14):
        live.fold("gpu_samples", [row("gpu_samples", time_ns=second * SECOND, gpu=0, utilization_ratio=0.5)])
    assert gpu.latest.number("temperature_c") is None
    assert gpu.latest.number("utilization_ratio") == 0.5


def test_rows_of_the_fast_tier_do_not_wipe_out_those_of_the_medium_one() -> None:
    live = gpu_node(memory_used_bytes=3 * GIB, temperature_c=60)
    live.fold("gpu_samples", [row("gpu_samples", time_ns=SECOND + 1, gpu=0, utilization_ratio=0.5)])
    assert live.gpus[0].latest.number("memory_used_bytes") == 3 * GIB
    assert live.gpus[0].latest.number("temperature_c") == 60


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"memory_used_bytes": 96, "memory_total_bytes": 100}, "memory of trainer1 is 96 % full"),
        ({"cgroup_memory_bytes": 97, "cgroup_memory_limit_bytes": 100}, "97 % of its memory limit"),
        ({"swap_out_bytes_per_s": 5e6}, "swaps 5.00 MB/s"),
        ({"memory_stall_ratio": 0.2}, "wait for memory 20 %"),
        ({"cgroup_throttled_ratio": 0.3}, "quota is used up 30 %"),
    ],
)
def test_what_stands_out_on_a_host(host: dict[str, Any], words: str) -> None:
    assert words in said(node(**host))


def test_nothing_stands_out_where_nothing_was_measured_or_all_is_well() -> None:
    assert said(node()) == ""
    assert said(node(cpu_ratio=1.0, memory_used_bytes=50, memory_total_bytes=100, swap_in_bytes_per_s=0.0)) == ""
    assert said(gpu_node(memory_used_bytes=90, memory_total_bytes=100)) == ""


def test_gpu_memory_other_jobs_and_xids_stand_out() -> None:
    live = gpu_node(memory_used_bytes=96, memory_total_bytes=100)
    process = row("gpu_processes", time_ns=SECOND, gpu=0, pid=77, kind="compute", owner="other", name="python")
    live.fold("gpu_processes", [process])
    live.fold("gpu_events", [row("gpu_events", time_ns=SECOND, gpu=0, kind="xid", code=79)])
    text = said(live).splitlines()
    assert text[0] == "GPU 0: xid 79 reported by the driver"
    assert any("GPU 0 of trainer1: memory 96 % full" in line for line in text)
    assert any("python of another job" in line for line in text)


@pytest.mark.parametrize(("held_ns", "shown"), [(100_000_000, True), (10_000_000, False)])
def test_throttling_is_a_share_of_the_time_between_first_and_last_sample(held_ns: int, shown: bool) -> None:
    live = gpu_node()
    rows = [
        row("gpu_samples", time_ns=i * SECOND // 5, gpu=0, throttled_power_ns=held_ns, throttled_thermal_ns=0)
        for i in range(1, 11)
    ]
    live.fold("gpu_samples", rows)
    # Nine periods of 200 ms lie between ten samples.
    assert live.gpus[0].throttled_shares() == pytest.approx((9 * held_ns / (9 * SECOND / 5), 0.0))
    assert ("held down for power 50 %" in said(live)) == shown


def test_a_rank_that_ends_no_step_is_said_to_hang_only_where_its_clock_is_ours() -> None:
    live = rank(10)
    assert "no step ended for 10.0 s on rank 0" in said(ranks=(live,), now_ns=20 * SECOND)
    assert said(ranks=(live,), now_ns=14 * SECOND) == ""
    assert said(ranks=(live,), now_ns=None) == ""
    assert said(ranks=(rank(1),), now_ns=10**15) == "", "no rate is known after one step"


def test_a_silent_sampler_is_told() -> None:
    assert "no sample of the host for 9.00 s" in said(node(cpu_ratio=0.1), now_ns=10 * SECOND)


def text_of(frame: Frame, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False, markup=False)
    console.print(draw(frame, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def crowded(ranks: int = 64, gpus: int = 8) -> Frame:
    live = node(cpu_ratio=0.5, memory_used_bytes=GIB, memory_total_bytes=4 * GIB, network_sent_bytes_per_s=1e6)
    for number in range(gpus):
        sample = row(
            "gpu_samples", time_ns=SECOND, gpu=number, utilization_ratio=0.9, power_mw=650_000, sm_clock_mhz=1980,
            clock_event_reasons=0x4, pcie_sent_bytes_per_s=1e9,
        )  # fmt: skip
        live.fold("gpu_samples", [sample])
        state = row(
            "gpu_states", time_ns=SECOND, gpu=number, memory_used_bytes=70 * GIB, memory_total_bytes=80 * GIB,
            temperature_c=71, power_limit_mw=700_000,
        )  # fmt: skip
        live.fold("gpu_states", [state])
    return Frame(
        title="run",
        status="running 0:10",
        ranks=[rank(5, number=number) for number in range(ranks)],
        nodes=[live],
        findings=[f"finding {number}" for number in range(9)],
        total_steps=100,
        world_size=ranks,
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (80, 10), (40, 24)])
@pytest.mark.parametrize(("ranks", "gpus"), [(64, 8), (2, 1), (0, 8), (1, 0), (0, 0), (8, 16)])
def test_a_frame_fits_and_keeps_title_host_and_the_gravest_finding(
    width: int, height: int, ranks: int, gpus: int
) -> None:
    lines = text_of(crowded(ranks, gpus), width, height)
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("agprof top · run")
    assert any(line.startswith("trainer1") for line in lines)
    assert any("finding 0" in line for line in lines)
    if height >= 24:
        assert len(lines) <= height


def test_gpus_are_shown_with_power_limit_memory_and_what_holds_them_down() -> None:
    text = "\n".join(text_of(crowded(1, 2), 120, 40))
    assert "650/700 W" in text
    assert "70.0/80 GiB" in text
    assert "power" in text
    assert "1.00 GB/s" in text
    narrow = "\n".join(text_of(crowded(1, 2), 80, 40))
    assert "650/700 W" in narrow
    assert "NVLink" not in narrow


@pytest.mark.parametrize(("total", "words"), [(100, "step 5 of 100 ·"), (4, "step 5 ·"), (None, "step 5 ·")])
def test_a_total_that_the_job_went_past_is_not_told(total: int | None, words: str) -> None:
    title = text_of(replace(crowded(1, 0), total_steps=total), 80, 24)[0]
    assert words in title
    assert ("left" in title) == (total == 100)


def test_what_does_not_fit_is_counted() -> None:
    text = "\n".join(text_of(crowded(), 80, 24))
    assert "more ranks" in text
    assert "more GPUs, 90 % to 90 % busy" in text


def test_not_measured_is_a_dash_and_never_zero() -> None:
    live = gpu_node()
    frame = Frame(title="x", status="", ranks=(), nodes=[live], findings=())
    line = next(line for line in text_of(frame, 80, 24) if line.strip().startswith("0 "))
    assert "0 %" not in line
    assert line.count("–") >= 5


def test_names_from_outside_do_not_steer_the_terminal() -> None:
    live = LiveNode(0, "evil\x1b[2Jhost\n")
    frame = Frame(title="a\x1b]0;x\x07b", status="", ranks=(), nodes=[live], findings=["\x1b[31mred\r"])
    text = "\n".join(text_of(frame, 80, 24))
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text


@pytest.mark.parametrize(
    ("reasons", "words"),
    [(None, "–"), (0, "no"), (0x1, "no"), (0x4, "power"), (0x20, "heat"), (0x40, "heat"), (0x84, "power, brake")],
)
def test_reasons_in_words(reasons: int | None, words: str) -> None:
    assert held_down(reasons) == words


def test_a_small_curve_has_gaps_where_nothing_was_measured() -> None:
    assert spark([0.0, None, 1.0], 4).plain == " ▁ █"
