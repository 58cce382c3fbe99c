"""`agprof bench-comm`: what it refuses, what it asks for, what it prints."""

from pathlib import Path
from typing import Any

import pytest

from agprof.cli.bench_comm import table
from agprof.cli.main import main
from agprof.launch import comm_bench as launch
from agprof.launch.comm_bench import Wish
from agprof.model.alpha_beta import fit_points
from agprof.model.comm_ceiling import CommCeiling, CommCurve, CommPoint

POINTS = tuple(
    CommPoint(bytes=size, repeats=7, median_ns=1_000_000 + size, low_ns=1_000_000, high_ns=2_000_000 + size)
    for size in (1024, 2**20, 2**24)
)


def ceiling(wish: Wish, ranks: int) -> CommCeiling:
    return CommCeiling(
        version=1, backend=wish.backend, device_type=wish.device, device_name="CPU", ranks=ranks, nodes=1, setup=None,
        link="loopback", measured_realtime_ns=1, torch_version="2", quick=wish.quick,
        curves=tuple(
            CommCurve(op=op, group_size=ranks, nodes=1, points=POINTS, fit=fit_points(POINTS)) for op in wish.ops
        ),
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Wish, int]]:
    wishes: list[tuple[Wish, int]] = []

    def measure(wish: Wish, ranks: int, **_rest: Any) -> CommCeiling:
        wishes.append((wish, ranks))
        return ceiling(wish, ranks)

    monkeypatch.setattr(launch, "measure_here", measure)
    monkeypatch.setenv("AGPROF_CACHE", str(tmp_path / "cache"))
    return wishes


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench-comm", *words])
    return int(end.value.code or 0)


def test_left_out_options_mean_gloo_between_two_ranks(asked: list[tuple[Wish, int]]) -> None:
    assert run("--device", "cpu") == 0
    ((wish, ranks),) = asked
    assert ranks == 2
    assert wish == Wish(
        backend="gloo",
        device="cpu",
        ops=("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"),
        most_bytes=64 * 2**20,
        seconds=60,
        quick=False,
    )


def test_what_is_asked_for_is_measured(asked: list[tuple[Wish, int]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--device", "cpu", "--ranks", "4", "--op", "broadcast", "--op", "all_reduce", "--most-bytes", "16M")
    assert run(*words, "--seconds", "9", "--backend", "gloo", "--backend", "mpi") == 0
    assert [(wish.backend, ranks) for wish, ranks in asked] == [("gloo", 4), ("mpi", 4)]
    assert {(wish.ops, wish.most_bytes, wish.seconds) for wish, _ in asked} == {(("broadcast", "all_reduce"), 2**24, 9)}
    said = capsys.readouterr()
    assert said.out.count("latency 1.00 ms") == 4
    assert "kept in" in said.err


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("--op", "warp"), "--op is 'warp'"),
        (("--backend", "smoke"), "--backend is 'smoke'"),
        (("--backend", "nccl", "--device", "cpu"), "GPU memory only"),
        (("--device", "tpu"), "--device is 'tpu'"),
        (("--most-bytes", "many"), "--most-bytes is 'many'"),
        (("--most-bytes", "1K"), "from 16K"),
        (("--most-bytes", "9999999G"), "from 16K to 1024G"),
        (("--setup", "two-nodes"), "give a WORKLOAD"),
        (("gpt2",), "give a WORKLOAD and one of its setups"),
        (("gpt2", "--setup", "two-nodes", "--ranks", "3"), "--ranks has no effect"),
        (("gpt2", "--setup", "tow-nodes"), "did you mean"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[str, ...], rule: str, asked: list[tuple[Wish, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert rule in capsys.readouterr().err
    assert asked == []


def test_a_setup_of_one_node_is_measured_here(asked: list[tuple[Wish, int]]) -> None:
    assert run("gpt2", "--setup", "one-node", "--device", "cpu") == 0
    assert [ranks for _, ranks in asked] == [2]


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    wish = Wish(backend="gloo", device="cpu", ops=("all_reduce",), most_bytes=1, seconds=1, quick=True)
    lines = table(ceiling(wish, 4))
    # 16 MiB in 17.78 ms: 944 MB/s; of 4 ranks the bus moves 1.5 times that
    assert lines[4].split()[-4:] == ["944", "MB/s", "1.42", "GB/s"]
    assert "bandwidth 1.00 GB/s ± 0%" in lines[5]
