"""`monitor: {prometheus: PORT}`: the newest values over HTTP, in Prometheus' text format. Page: docs/prometheus.md.

Imported only when it is asked for. What is None or stale is absent from an answer; it is never 0.
"""

import sys
import threading
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from agprof.model.version import __version__
from agprof.sampler.metrics import Metric, Source, help_text
from agprof.sampler.newest import Key, Newest
from agprof.sampler.states import States

PREFIX = "agprof_"
FIELD = "prometheus"
_GPU_INFO = ("uuid", "name", "pci_bus_id", "driver_version", "architecture", "compute_capability")

Family = GaugeMetricFamily | CounterMetricFamily | InfoMetricFamily


class NodeCollector(Collector):
    """Makes the families of one answer from the newest rows."""

    def __init__(self, newest: Newest, monotonic_ns: Callable[[], int]) -> None:
        self._newest = newest
        self._monotonic_ns = monotonic_ns

    def collect(self) -> Iterable[Family]:
        gpus = self._newest.gpus()
        uuids = {gpu: str(row.get("uuid") or "") for gpu, row in gpus.items()}
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for source, metric, key, value in self._newest.values(self._monotonic_ns()):
            labels = _labels(source, metric, key, uuids)
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = _family(source, metric, list(labels))
            family.add_metric(list(labels.values()), value)
        yield from families.values()
        yield from self._gpu_info(gpus)
        yield from self._events()
        yield from self._own()

    def _gpu_info(self, gpus: dict[int, dict[str, object]]) -> Iterable[Family]:
        if gpus:
            info = InfoMetricFamily(f"{PREFIX}gpu", "The GPU as NVML describes it", labels=["gpu"])
            for gpu, row in gpus.items():
                info.add_metric([str(gpu)], {name: str(row.get(name) or "") for name in _GPU_INFO})
            yield info

    def _events(self) -> Iterable[Family]:
        events = self._newest.events()
        if events:
            counter = CounterMetricFamily(
                f"{PREFIX}gpu_events",
                "Events that the driver reported since the sampler's start",
                labels=["gpu", "kind"],
            )
            for (gpu, kind), count in events.items():
                counter.add_metric([gpu, kind], count)
            yield counter

    def _own(self) -> Iterable[Family]:
        cpu_ns, resident_bytes = self._newest.own()
        yield InfoMetricFamily(f"{PREFIX}sampler", "The sampler", {"version": __version__})
        if cpu_ns is not None:
            yield CounterMetricFamily(f"{PREFIX}sampler_cpu_seconds", "CPU time of the sampler", cpu_ns / 1e9)
        if resident_bytes is not None:
            name = f"{PREFIX}sampler_resident_memory_bytes"
            yield GaugeMetricFamily(name, "Resident set of the sampler", resident_bytes)


def _labels(source: Source, metric: Metric, key: Key, uuids: dict[int, str]) -> dict[str, str]:
    labels = {name: "" if value is None else str(value) for name, value in zip(source.keys, key, strict=True)}
    if "gpu" in labels:
        labels["uuid"] = uuids.get(key[0], "")
    return {**labels, **dict(metric.labels)}


def _family(source: Source, metric: Metric, labels: list[str]) -> GaugeMetricFamily | CounterMetricFamily:
    kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
    return kind(PREFIX + metric.name, help_text(source.table, metric), labels=labels)


def serve(host: str, port: int, newest: Newest, states: States, monotonic_ns: Callable[[], int]) -> None:
    """Serve from threads of their own from now on. A port that can't be had is said, and everything else goes on."""
    registry = CollectorRegistry()
    registry.register(NodeCollector(newest, monotonic_ns))

    def start() -> None:
        # Not on the thread that samples: binding looks the host's name up, which may take seconds without a network.
        try:
            start_http_server(port, host, registry)
        except Exception as error:  # OSError of the socket; a host's name that can't be encoded is a UnicodeError
            reason = f"can't listen on {host}, port {port}: {getattr(error, 'strerror', None) or error}"
            states.set(monotonic_ns(), FIELD, "unsupported", reason)
            print(f"agprof sampler: prometheus {reason}", file=sys.stderr, flush=True)

    threading.Thread(target=start, name="agprof-prometheus", daemon=True).start()
