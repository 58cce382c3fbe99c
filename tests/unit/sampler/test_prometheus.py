"""What Prometheus is told: the newest values in base units, and nothing where there is none."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from agprof.model.tables import BY_NAME
from agprof.sampler.metrics import SOURCES, Metric
from agprof.sampler.newest import Newest
from agprof.sampler.prometheus import NodeCollector
from agprof.sampler.states import SECOND_NS
from agprof.store import layout
from agprof.store.frames import StreamFollower

PERIODS_S = {"fast": 0.2, "medium": 1.0, "slow": 5.0}
Answer = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Answer:
    """(name of a sample, labels) -> value."""
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


class Rig:
    def __init__(self) -> None:
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        self.newest = Newest(lambda table, row: self.rows.append((table, row)), PERIODS_S)  # type: ignore[arg-type]
        self.now = 100 * SECOND_NS

    def add(self, table: str, **values: Any) -> None:
        """A row with these values, at this time; every other column is None."""
        values = {"time_ns": self.now, **values}
        self.newest.append(table, tuple(values.get(column.name) for column in BY_NAME[table].columns))

    def answer(self) -> Answer:
        registry = CollectorRegistry()
        registry.register(NodeCollector(self.newest, lambda: self.now))
        return parsed(generate_latest(registry).decode())

    def value(self, name: str, **labels: str) -> float | None:
        return self.answer().get((name, tuple(sorted(labels.items()))))


def test_values_are_in_base_units_with_the_gpus_uuid() -> None:
    rig = Rig()
    rig.add("gpus", gpu=1, uuid="GPU-x", name="NVIDIA H100")
    rig.add("gpu_samples", gpu=1, power_mw=651_500, energy_mj=2_500, sm_clock_mhz=1980, utilization_ratio=0.97)
    rig.add("gpu_states", gpu=1, memory_used_bytes=8 << 30, temperature_c=61)
    rig.add("host_samples", cpu_ratio=0.25)
    rig.add("process_samples", rank=3, role="worker", cpu_cores=1.5)
    rig.add("process_samples", rank=None, role="rank", cpu_cores=0.5)
    rig.add("network_samples", interface="eth0", sent_bytes_per_s=1e6)
    gpu = {"gpu": "1", "uuid": "GPU-x"}
    assert rig.value("agprof_gpu_power_watts", **gpu) == 651.5
    assert rig.value("agprof_gpu_energy_joules_total", **gpu) == 2.5
    assert rig.value("agprof_gpu_sm_clock_hertz", **gpu) == 1.98e9
    assert rig.value("agprof_gpu_utilization_ratio", **gpu) == 0.97
    assert rig.value("agprof_gpu_memory_used_bytes", **gpu) == 8 << 30
    assert rig.value("agprof_gpu_temperature_celsius", **gpu) == 61
    assert rig.value("agprof_host_cpu_ratio") == 0.25
    assert rig.value("agprof_process_cpu_cores", rank="3", role="worker") == 1.5
    assert rig.value("agprof_process_cpu_cores", rank="", role="rank") == 0.5
    assert rig.value("agprof_network_sent_bytes_per_second", interface="eth0") == 1e6
    info = [dict(labels) for name, labels in rig.answer() if name == "agprof_gpu_info"]
    assert [(row["gpu"], row["uuid"], row["name"], row["driver_version"]) for row in info] == [
        ("1", "GPU-x", "NVIDIA H100", "")
    ]
    assert [table for table, _ in rig.rows] == [
        "gpus", "gpu_samples", "gpu_states", "host_samples", "process_samples", "process_samples", "network_samples"
    ]  # fmt: skip


def test_what_is_not_measured_is_absent_and_not_zero() -> None:
    rig = Rig()
    rig.add("gpu_samples", gpu=0, power_mw=1000, utilization_ratio=0.0)
    labels = {"gpu": "0", "uuid": ""}
    assert rig.value("agprof_gpu_utilization_ratio", **labels) == 0
    assert rig.value("agprof_gpu_power_watts", **labels) == 1
    rig.add("gpu_samples", gpu=0, utilization_ratio=0.5)
    names = {name for name, _ in rig.answer()}
    assert names == {"agprof_gpu_utilization_ratio", "agprof_sampler_info"}


@pytest.mark.parametrize(
    ("table", "period_s", "name"),
    [("gpu_samples", 0.2, "agprof_gpu_power_watts"), ("gpu_states", 1.0, "agprof_gpu_power_limit_watts")],
)
def test_a_value_is_absent_after_three_periods(table: str, period_s: float, name: str) -> None:
    rig = Rig()
    for _ in range(3):
        rig.add(table, gpu=0, power_mw=1000, power_limit_mw=1000)
        rig.now += int(period_s * SECOND_NS)
    rig.now += int(1.9 * period_s * SECOND_NS)
    assert rig.value(name, gpu="0", uuid="") == 1
    rig.now += int(0.2 * period_s * SECOND_NS)
    assert rig.value(name, gpu="0", uuid="") is None


def test_a_tier_that_was_slowed_down_is_not_stale_between_its_samples() -> None:
    rig = Rig()
    for _ in range(3):
        rig.add("gpu_samples", gpu=0, power_mw=1000)
        rig.now += 3 * SECOND_NS
    assert rig.value("agprof_gpu_power_watts", gpu="0", uuid="") == 1
    rig.now += 7 * SECOND_NS
    assert rig.value("agprof_gpu_power_watts", gpu="0", uuid="") is None


def test_a_long_gap_does_not_keep_a_value_alive_for_long() -> None:
    rig = Rig()
    rig.add("gpu_samples", gpu=0, power_mw=1000)
    rig.now += 3600 * SECOND_NS
    rig.add("gpu_samples", gpu=0, power_mw=1000)
    rig.now += 31 * SECOND_NS
    assert rig.value("agprof_gpu_power_watts", gpu="0", uuid="") is None


def test_what_is_read_less_often_than_its_table_stays_for_three_of_its_own_periods() -> None:
    rig = Rig()
    rig.add("gpu_samples", gpu=0, power_mw=900, power_average_mw=1000)
    for _ in range(14):
        rig.now += SECOND_NS // 5
        rig.add("gpu_samples", gpu=0, power_mw=900)
    assert rig.value("agprof_gpu_power_average_watts", gpu="0", uuid="") == 1
    for _ in range(3):
        rig.now += SECOND_NS // 5
        rig.add("gpu_samples", gpu=0, power_mw=900)
    assert rig.value("agprof_gpu_power_average_watts", gpu="0", uuid="") is None


def test_changes_are_counted_up_and_a_missing_one_changes_nothing() -> None:
    rig = Rig()
    labels = {"gpu": "0", "uuid": "", "cause": "power"}
    rig.add("gpu_samples", gpu=0, utilization_ratio=0.1)
    assert rig.value("agprof_gpu_throttled_seconds_total", **labels) is None
    for throttled_ns in (SECOND_NS, None, SECOND_NS // 2):
        rig.add("gpu_samples", gpu=0, throttled_power_ns=throttled_ns)
    assert rig.value("agprof_gpu_throttled_seconds_total", **labels) == pytest.approx(1.5)
    rig.add("host_samples", cpu_energy_uj=3_000_000)
    assert rig.value("agprof_host_cpu_energy_joules_total") == pytest.approx(3)


def test_events_are_counted_by_gpu_and_kind() -> None:
    rig = Rig()
    for gpu in (0, 0, None):
        rig.add("gpu_events", gpu=gpu, kind="xid", code=79)
    assert rig.value("agprof_gpu_events_total", gpu="0", kind="xid") == 2
    assert rig.value("agprof_gpu_events_total", gpu="", kind="xid") == 1


def test_the_sampler_tells_of_itself() -> None:
    rig = Rig()
    rig.add("sampler_state", field="self", state="ok", reason="", self_cpu_ns=2 * SECOND_NS, self_rss_bytes=5)
    assert rig.value("agprof_sampler_cpu_seconds_total") == 2
    assert rig.value("agprof_sampler_resident_memory_bytes") == 5


def test_hostile_names_are_escaped() -> None:
    rig = Rig()
    name = 'e"th\n0\\ 1} 5\u2028<script>'
    rig.add("network_samples", interface=name, sent_bytes_per_s=1.0)
    assert rig.value("agprof_network_sent_bytes_per_second", interface=name) == 1


def test_names_follow_the_conventions_and_are_of_one_kind_each() -> None:
    units = ("_ratio", "_watts", "_joules", "_hertz", "_bytes", "_bytes_per_second", "_celsius", "_seconds", "_cores")
    without_unit = {
        "gpu_clock_event_reasons", "gpu_ecc_corrected_errors", "gpu_ecc_uncorrected_errors", "gpu_row_remap_pending",
        "gpu_row_remap_failed", "gpu_remapped_rows_corrected", "gpu_remapped_rows_uncorrected", "host_load1",
        "cgroup_oom_kills", "network_errors", "process_count", "process_threads", "process_loaders",
    }  # fmt: skip
    kinds: dict[str, set[str]] = {}
    for source in SOURCES:
        for metric in source.metrics:
            assert metric.name.endswith(units) or metric.name in without_unit, metric.name
            assert not metric.name.endswith("_total")
            kinds.setdefault(metric.name, set()).add(metric.kind)
    assert all(len(kind) == 1 for kind in kinds.values())


def test_the_page_tells_of_every_metric() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "prometheus.md").read_text(encoding="utf-8")

    def full(metric: Metric) -> str:
        return f"agprof_{metric.name}{'' if metric.kind == 'gauge' else '_total'}"

    missing = [full(m) for source in SOURCES for m in source.metrics if f"`{full(m)}`" not in page]
    assert missing == []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return found


def sampler(run: Path, port: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "agprof.sampler", "--run-dir", str(run), "--period", "0.1", "--nvml", "off",
         "--prometheus-port", str(port)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def get(port: int) -> Answer | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as response:
            return parsed(response.read().decode())
    except OSError:
        return None


def test_a_sampler_serves_what_it_measures_on_the_loopback_alone(tmp_path: Path) -> None:
    port = free_port()
    with sampler(tmp_path, port) as process:
        try:
            answer = wait_for(lambda: (found := get(port)) and ("agprof_host_cpu_ratio", ()) in found and found)
            assert 0 <= answer[("agprof_host_cpu_ratio", ())] <= 1
            assert answer[("agprof_host_memory_used_bytes", ())] > 2**20
            assert answer[("agprof_sampler_resident_memory_bytes", ())] > 2**20
            assert not any(name.startswith("agprof_gpu") for name, _ in answer)
            assert listening_addresses(port) == {"0100007F"}
        finally:
            assert process.stdin is not None
            process.stdin.close()
        assert process.wait(10) == 0


def listening_addresses(port: int) -> set[str]:
    """Local addresses in hex, of sockets of IPv4 and IPv6 that listen at the port."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


def test_a_port_that_is_in_use_is_said_and_sampling_goes_on(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with sampler(tmp_path, port) as process:
            follower = StreamFollower(layout.node_stream(tmp_path, 0))
            rows: list[tuple[str, list[Any]]] = []

            def said() -> bool:
                rows.extend((table, row) for table, batch in follower.poll() for row in batch)
                return any(table == "sampler_state" and row[1] == "prometheus" for table, row in rows)

            wait_for(said)
            count = len(rows)
            wait_for(lambda: said() and len(rows) > count + 5)
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.close()
            assert process.wait(10) == 0
            reason = f"can't listen on 127.0.0.1, port {port}: Address already in use"
            assert process.stderr.read() == f"agprof sampler: prometheus {reason}\n"
    assert [row[2:4] for table, row in rows if row[1] == "prometheus"] == [["unsupported", reason]]


WITHOUT_CLIENT = """
import sys
sys.modules["prometheus_client"] = None
from agprof.sampler.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_client_library_it_is_said_and_sampling_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_CLIENT, "--run-dir", str(tmp_path), "--prometheus-port", "9109"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert done.stderr.startswith("agprof sampler: prometheus can't be served: ")
    rows = [(table, row) for table, batch in StreamFollower(layout.node_stream(tmp_path, 0)).poll() for row in batch]
    assert [row[2] for table, row in rows if row[1] == "prometheus"] == ["unsupported"]
    assert any(table == "host_samples" for table, _ in rows)
