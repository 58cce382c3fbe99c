"""Device activities of an Nsight Systems export: kernels, copies, memsets, graphs, waits, counters, memory use."""

from collections.abc import Mapping

import polars as pl

from agprof.importers.nsys_export import Export, Kind, quoted
from agprof.importers.nsys_rows import Target, Targets
from agprof.model.trace_tables import GpuKind

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
MEMCPY = "CUPTI_ACTIVITY_KIND_MEMCPY"
MEMSET = "CUPTI_ACTIVITY_KIND_MEMSET"
GRAPH = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
SYNC = "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION"
EVENT = "CUPTI_ACTIVITY_KIND_CUDA_EVENT"
METRICS = "GPU_METRICS"
MEMORY = "CUDA_GPU_MEMORY_USAGE_EVENTS"
TABLES = (KERNEL, MEMCPY, MEMSET, GRAPH, SYNC, METRICS, MEMORY)

# The tables ENUM_* of the export hold the same, but are empty or absent in some.
_COPY_KINDS = {0: "", 1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD",
               9: "HtoH", 10: "PtoP", 11: "UVM HtoD", 12: "UVM DtoH", 13: "UVM DtoD"}  # fmt: skip
_MEMORY_KINDS = {0: "Pageable", 1: "Pinned", 2: "Device", 3: "Array", 4: "Managed", 5: "Device Static",
                 6: "Managed Static", 7: "Unknown"}  # fmt: skip
_SYNC_TYPES = {1: "Event Sync", 2: "Stream Wait Event", 3: "Stream Sync", 4: "Context Sync"}
"""As Kineto calls them."""
_COMMON: Mapping[str, Kind] = {
    "start": "int",
    "end": "int",
    "globalPid": "int",
    "deviceId": "int",
    "streamId": "int",
    "correlationId": "int",
}


def read(export: Export, targets: Targets) -> None:
    """Write the device's tables of all ranks. Raises TraceError and OSError."""
    _kernels(export, targets)
    _copies(export, targets)
    _memsets(export, targets)
    _graphs(export, targets)
    _syncs(export, targets)
    _metrics(export, targets)
    _memory(export, targets)


def _kernels(export: Export, targets: Targets) -> None:
    columns: dict[str, Kind] = {**_COMMON, "demangledName": "int", "shortName": "int", "graphNodeId": "int"}
    for rows in export.chunks(KERNEL, columns):
        names = export.texts(rows["demangledName"]), export.texts(rows["shortName"])
        text = pl.select(pl.coalesce(*names)).to_series()
        graph = pl.when(pl.col("graphNodeId") > 0).then("graphNodeId")
        _write(targets, rows.with_columns(text=text, graph_node=graph), GpuKind.KERNEL, KERNEL)


def _copies(export: Export, targets: Targets) -> None:
    columns: dict[str, Kind] = {**_COMMON, "bytes": "int", "copyKind": "int", "srcKind": "int", "dstKind": "int",
                                "graphNodeId": "int"}  # fmt: skip
    memory = pl.concat_str(
        pl.lit(" ("), _word("srcKind", _MEMORY_KINDS), pl.lit(" -> "), _word("dstKind", _MEMORY_KINDS), pl.lit(")")
    )
    text = pl.concat_str(pl.lit("Memcpy "), _word("copyKind", _COPY_KINDS), memory.fill_null(""))
    for rows in export.chunks(MEMCPY, columns):
        named = rows.with_columns(text=text.str.strip_chars(), graph_node=pl.col("graphNodeId"))
        _write(targets, named, GpuKind.MEMCPY, MEMCPY)


def _memsets(export: Export, targets: Targets) -> None:
    columns: dict[str, Kind] = {**_COMMON, "bytes": "int", "memKind": "int", "graphNodeId": "int"}
    text = pl.concat_str(pl.lit("Memset ("), _word("memKind", _MEMORY_KINDS), pl.lit(")")).fill_null("Memset")
    for rows in export.chunks(MEMSET, columns):
        named = rows.with_columns(text=text, graph_node=pl.col("graphNodeId"))
        _write(targets, named, GpuKind.MEMSET, MEMSET)


def _graphs(export: Export, targets: Targets) -> None:
    """Executions of CUDA graphs that were traced as wholes (`--cuda-graph-trace=graph`, the default)."""
    columns: dict[str, Kind] = {**_COMMON, "graphId": "int"}
    text = pl.concat_str(pl.lit("CUDA graph "), pl.col("graphId").cast(pl.String)).fill_null("CUDA graph")
    for rows in export.chunks(GRAPH, columns):
        _write(targets, rows.with_columns(text=text), GpuKind.KERNEL, GRAPH)


def _syncs(export: Export, targets: Targets) -> None:
    """Waits. They go by process: nsys writes device 0 for all of them (seen in 2026.2)."""
    columns: dict[str, Kind] = {**_COMMON, "syncType": "int", "eventSyncId": "int"}
    text = _word("syncType", _SYNC_TYPES).fill_null("Sync")
    records = _records(export)
    for rows in export.chunks(SYNC, columns):
        targets.tell(rows.height)
        prepared = _prepared(rows.with_columns(text=text), GpuKind.SYNC)
        for target, part in targets.of_processes(prepared, SYNC):
            own = part.with_columns(device=pl.lit(target.rank.device, dtype=pl.Int64))
            timed = targets.timed(target, own, SYNC)
            target.append("gpu", _columns(timed))
            waits = timed.drop_nulls("correlation").join(records, on=["process", "eventSyncId"], how="inner")
            target.append("event_waits", waits.select("correlation", "waited_stream", "record_correlation"))


def _records(export: Export) -> pl.DataFrame:
    """Records of CUDA events by process and eventSyncId. Event handles are used again, so they tell nothing."""
    schema = {"process": pl.Int64, "eventSyncId": pl.Int64, "waited_stream": pl.Int64, "record_correlation": pl.Int64}
    columns: dict[str, Kind] = {"globalPid": "int", "eventSyncId": "int", "streamId": "int", "correlationId": "int"}
    frames = [pl.DataFrame(schema=schema)]
    for rows in export.chunks(EVENT, columns):
        known = rows.filter(pl.col("eventSyncId") > 0)
        process = (pl.col("globalPid") // 2**24).alias("process")
        frames.append(
            known.select(process, "eventSyncId", waited_stream="streamId", record_correlation="correlationId")
        )
    return pl.concat(frames).unique(["process", "eventSyncId"], keep="last", maintain_order=True)


def _word(column: str, words: Mapping[int, str]) -> pl.Expr:
    return pl.col(column).replace_strict(list(words), list(words.values()), default=None, return_dtype=pl.String)


def _prepared(rows: pl.DataFrame, kind: GpuKind) -> pl.DataFrame:
    # CUPTI gives 0 where there is no correlation; bytes of a torn row can be anything.
    return rows.with_columns(
        kind=pl.lit(int(kind), dtype=pl.Int64),
        process=pl.col("globalPid") // 2**24,
        device=pl.col("deviceId"),
        stream=pl.col("streamId"),
        correlation=pl.when(pl.col("correlationId") > 0).then("correlationId"),
    )


def _write(targets: Targets, rows: pl.DataFrame, kind: GpuKind, what: str) -> None:
    targets.tell(rows.height)
    for target, part in targets.of_devices(_prepared(rows, kind), what):
        target.append("gpu", _columns(targets.timed(target, part, what)))


def _columns(rows: pl.DataFrame) -> pl.DataFrame:
    wanted = ("start_ns", "duration_ns", "kind", "device", "stream", "text", "correlation", "bytes", "graph_node")
    return rows.select(name for name in wanted if name in rows.columns)


def _metrics(export: Export, targets: Targets) -> None:
    """Samples of GPU metrics, to the rank of their GPU. The lowest byte of a type id is the GPU (nsys' manual)."""
    names = _metric_names(export)
    if not names:
        return
    known = pl.DataFrame(
        [(type_, metric, text) for (type_, metric), text in names.items()],
        schema={"typeId": pl.Int64, "metricId": pl.Int64, "text": pl.String},
        orient="row",
    )
    devices: dict[int, list[Target]] = {}
    for target in targets.all:
        if target.rank.device is not None:
            devices.setdefault(target.rank.device, []).append(target)
    columns: dict[str, Kind] = {"timestamp": "int", "typeId": "int", "metricId": "int", "value": "float"}
    for rows in export.chunks(METRICS, columns):
        targets.tell(rows.height)
        named = rows.join(known, on=["typeId", "metricId"], how="inner").with_columns(
            start=pl.col("timestamp"), end=pl.col("timestamp"), device=pl.col("typeId") % 256
        )
        for device, owners in devices.items():
            # Several processes on one GPU share its metrics; they stand at the first.
            part = targets.timed(owners[0], named.filter(pl.col("device") == device), METRICS).drop_nulls("value")
            owners[0].append("counters", part.select("text", "value", time_ns="start_ns"))


def _metric_names(export: Export) -> dict[tuple[int, int], str]:
    table = export.table("TARGET_INFO_GPU_METRICS")
    if table is None or not {"typeId", "metricId", "metricName"} <= set(export.columns(table)):
        return {}
    rows = export.query(f"SELECT typeId, metricId, metricName FROM {quoted(table)} LIMIT 100000")
    return {
        (type_, metric): name
        for type_, metric, name in rows
        if isinstance(type_, int) and isinstance(metric, int) and isinstance(name, str)
    }


def _memory(export: Export, targets: Targets) -> None:
    """Allocations and frees of device memory (`--cuda-memory-usage=true`): operation 0 allocates, 1 frees."""
    columns: dict[str, Kind] = {"start": "int", "globalPid": "int", "deviceId": "int", "address": "int",
                                "bytes": "int", "memKind": "int", "memoryOperationType": "int"}  # fmt: skip
    for rows in export.chunks(MEMORY, columns):
        targets.tell(rows.height)
        prepared = rows.with_columns(
            process=pl.col("globalPid") // 2**24,
            device=pl.col("deviceId"),
            end=pl.col("start"),
            on_device=pl.col("memKind").is_in([2, 3, 5]).fill_null(value=True),
            bytes=pl.when(pl.col("memoryOperationType") == 1).then(-pl.col("bytes")).otherwise("bytes"),
        )
        for target, part in targets.of_devices(prepared, MEMORY):
            good = targets.timed(target, part, MEMORY).drop_nulls("bytes")
            target.append("memory_events", good.select("on_device", "device", "address", "bytes", time_ns="start_ns"))
