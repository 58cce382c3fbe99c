"""The host's side of an Nsight Systems export: CUDA calls, library calls, NVTX ranges, NCCL's annotations."""

import polars as pl

from agprof.importers import nsys_nccl
from agprof.importers.nsys_export import Export, Kind, quoted
from agprof.importers.nsys_gpu import KERNEL
from agprof.importers.nsys_ranks import NVTX, RUNTIME
from agprof.importers.nsys_rows import Target, Targets
from agprof.model.trace_tables import CpuKind

LIBRARIES = ("CUBLAS_EVENTS", "CUDNN_EVENTS")
OVERHEAD = "CUPTI_ACTIVITY_KIND_OVERHEAD"
TABLES = (RUNTIME, *LIBRARIES, OVERHEAD, NVTX)
MARK, PUSH_POP, START_END, DOMAIN = 34, 59, 60, 75
"""Event types (ENUM_NSYS_EVENT_TYPE, which some exports leave empty)."""
_KNOWN_TYPES = (33, MARK, 35, 36, 37, 38, 39, PUSH_POP, START_END, DOMAIN, 76, 97, 98, 99)
_PLAIN_DOMAINS = ("", "agprof", "NCCL", "PyTorch")
"""Domains whose ranges need no `domain:` before their names."""
_EMITTED = r", (?:seq|op_id) = -?\d+"
"""What torch.autograd.profiler.emit_nvtx writes behind an operator's name."""
_REST = r"(?s), (?:seq|op_id|sizes|input_op_ids) = .*$"
_MOST_BYTES, _MOST_RANKS = 2**42, 2**20
_OPERATOR = r"^(?:autograd::.*|[A-Za-z_][\w]*(?:::[\w.]+)*)$"


def read(export: Export, targets: Targets) -> None:
    """Write the host's tables of all ranks. Raises TraceError and OSError."""
    _calls(export, targets, RUNTIME, CpuKind.RUNTIME)
    for table in LIBRARIES:
        _calls(export, targets, table, CpuKind.OTHER)
    _calls(export, targets, OVERHEAD, CpuKind.OVERHEAD)
    _nvtx(export, targets)
    _collectives(export, targets)


def _calls(export: Export, targets: Targets, table: str, kind: CpuKind) -> None:
    columns: dict[str, Kind] = {"start": "int", "end": "int", "globalTid": "int", "correlationId": "int",
                                "nameId": "int"}  # fmt: skip
    devices = _devices_of_calls(export, targets) if kind == CpuKind.RUNTIME else None
    for rows in export.chunks(table, columns):
        targets.tell(rows.height)
        # cudaLaunchKernel_v7000 -> cudaLaunchKernel, as Kineto calls it
        text = export.texts(rows["nameId"]).str.replace(r"(?:_pt[sd][sz])?_v\d{4,5}(?:_pt[sd][sz])?$", "")
        driver = (
            text.str.contains(r"^cu[A-Z]")
            if kind == CpuKind.RUNTIME
            else pl.Series([False]).new_from_index(0, rows.height)
        )
        prepared = _on_threads(rows).with_columns(
            text=text,
            kind=pl.when(driver).then(int(CpuKind.DRIVER)).otherwise(int(kind)).cast(pl.Int64),
            correlation=pl.when(pl.col("correlationId") > 0).then("correlationId"),
        )
        for target, part in targets.of_processes(prepared, table):
            own = part if devices is None else _of_device(part, target, devices)
            timed = targets.timed(target, own, table)
            target.append("cpu", timed.select("start_ns", "duration_ns", "kind", "thread", "text", "correlation"))


def _on_threads(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(process=pl.col("globalTid") // 2**24, thread=pl.col("globalTid") % 2**24)


def _devices_of_calls(export: Export, targets: Targets) -> pl.DataFrame | None:
    """Device of each call by process and correlation, where processes drive several devices; else None."""
    if not targets.several_devices:
        return None
    found = []
    for base in ("KERNEL", "MEMCPY", "MEMSET"):
        columns: dict[str, Kind] = {"globalPid": "int", "correlationId": "int", "deviceId": "int"}
        for rows in export.chunks(f"CUPTI_ACTIVITY_KIND_{base}", columns):
            found.append(
                rows.select("correlationId", process=pl.col("globalPid") // 2**24, called_device="deviceId").filter(
                    pl.col("process").is_in(list(targets.several_devices))
                )
            )
    return pl.concat(found).unique(["process", "correlationId"]) if found else None


def _of_device(rows: pl.DataFrame, target: Target, devices: pl.DataFrame) -> pl.DataFrame:
    """Calls that launched on the rank's device, and those that launched nothing."""
    joined = rows.join(devices, on=["process", "correlationId"], how="left", maintain_order="left")
    called = pl.col("called_device")
    return joined.filter(called.is_null() | (called == target.rank.device)).drop("called_device")


def _nvtx(export: Export, targets: Targets) -> None:
    columns: dict[str, Kind] = {"start": "int", "end": "int", "eventType": "int", "text": "text", "textId": "int",
                                "domainId": "int", "globalTid": "int"}  # fmt: skip
    domains = _domains(export)
    kinds = (MARK, PUSH_POP, START_END)
    table = export.table(NVTX)
    if table is None or "eventType" not in export.columns(table):
        return
    _count_foreign(export, table, targets)
    for rows in export.chunks(NVTX, columns, f"eventType IN {kinds}"):
        targets.tell(rows.height)
        named = _named(_on_threads(rows.with_columns(registered=export.texts(rows["textId"]))), domains)
        prepared = named.with_columns(
            end=pl.when(pl.col("eventType") == MARK).then("start").otherwise("end"),
            # Start/end ranges cross others, so they are on no thread: there events nest.
            thread=pl.when(pl.col("eventType") != START_END).then("thread"),
        )
        for target, part in targets.of_processes(prepared, NVTX):
            timed = targets.timed(target, part, NVTX)
            target.append("cpu", timed.select("start_ns", "duration_ns", "kind", "thread", "text", "sequence"))


def _count_foreign(export: Export, table: str, targets: Targets) -> None:
    sql = f"SELECT count(*) FROM {quoted(table)} WHERE eventType IS NULL OR eventType NOT IN {_KNOWN_TYPES}"
    foreign = export.query(sql)[0][0]
    if foreign:
        targets.all[0].left_out["NVTX events of an unknown type"] += foreign


def _named(rows: pl.DataFrame, domains: pl.DataFrame) -> pl.DataFrame:
    """With text, kind and sequence: operators that emit_nvtx wrote are operators, under their own names."""
    own = pl.coalesce("text", "registered")
    emitted = own.str.contains(_EMITTED).fill_null(value=False)
    bare = pl.when(emitted).then(own.str.replace(_REST, "")).otherwise(own)
    # Users' ranges are written in the same way; theirs are no operators' names.
    operator = emitted & bare.str.contains(_OPERATOR) & ~bare.str.contains(r"^(?:FSDP::|ProfilerStep)")
    return (
        rows.with_columns(
            sequence=pl.when(emitted).then(own.str.extract(r", seq = (\d{1,18})(?:,|$)").cast(pl.Int64)),
            kind=pl.when(operator).then(int(CpuKind.OP)).otherwise(int(CpuKind.ANNOTATION)).cast(pl.Int64),
            text=bare,
        )
        .join(domains, on=["process", "domainId"], how="left", maintain_order="left")
        .with_columns(text=pl.concat_str(pl.col("domain").fill_null(""), pl.col("text").fill_null("(no name)")))
    )


def _domains(export: Export) -> pl.DataFrame:
    """`name:` of each process' domains, empty for those that need none."""
    schema = {"process": pl.Int64, "domainId": pl.Int64, "domain": pl.String}
    columns: dict[str, Kind] = {"eventType": "int", "text": "text", "textId": "int", "domainId": "int",
                                "globalTid": "int"}  # fmt: skip
    frames = [pl.DataFrame(schema=schema)]
    for rows in export.chunks(NVTX, columns, f"eventType = {DOMAIN}"):
        text = pl.coalesce(pl.col("text"), export.texts(rows["textId"])).fill_null("")
        named = _on_threads(rows).with_columns(domain=text)
        prefix = pl.when(pl.col("domain").is_in(_PLAIN_DOMAINS)).then(pl.lit("")).otherwise(pl.col("domain") + ":")
        frames.append(named.select("process", "domainId", domain=prefix))
    return pl.concat(frames).unique(["process", "domainId"], keep="last", maintain_order=True)


def _collectives(export: Export, targets: Targets) -> None:
    """Sizes that NCCL annotates, each on the kernel that was launched inside the annotated call on its thread."""
    members: dict[int, int] = {}
    found = []
    for call in nsys_nccl.calls(export):
        if call.ranks is not None and call.communicator is not None:
            members[call.communicator] = call.ranks
        operation = nsys_nccl.OPERATIONS.get(call.name)
        if operation is not None:
            found.append((call.start, call.end, call.thread, operation, call.communicator, call.bytes))
    if not found:
        return
    schema = {"start": pl.Int64, "end": pl.Int64, "globalTid": pl.Int64, "op": pl.String, "communicator": pl.UInt64,
              "bytes": pl.Int64}  # fmt: skip
    rows = pl.DataFrame(found, schema=schema, orient="row", strict=False)
    sizes = pl.DataFrame(
        {"communicator": pl.Series(list(members), dtype=pl.UInt64), "group_size": pl.Series(list(members.values()))},
        schema_overrides={"group_size": pl.Int64},
    )
    rows = _on_threads(_with_launches(export, rows.join(sizes, on="communicator", how="left")))
    # A size or a number of ranks that can't be true is none; so what they make fits 64 bits.
    size = pl.when(pl.col("bytes").is_between(0, _MOST_BYTES)).then("bytes")
    n = pl.when(pl.col("group_size").is_between(1, _MOST_RANKS)).then("group_size")
    prepared = rows.with_columns(
        group=pl.col("communicator").cast(pl.String),
        group_size=n,
        # NCCL annotates bytes, not elements: an element here is a byte.
        dtype=pl.when(size.is_not_null()).then(pl.lit("Byte")),
        elements_in=pl.when(pl.col("op") == "reduce_scatter").then(size * n).otherwise(size),
        elements_out=pl.when(pl.col("op") == "all_gather").then(size * n).otherwise(size),
    )
    for target, part in targets.of_processes(prepared, "NCCL annotations"):
        timed = targets.timed(target, part, "NCCL annotations")
        target.writer.append(
            "comm_args",
            {name: timed[name] for name in ("start_ns", "correlation", "op", "group", "group_size", "dtype",
                                            "elements_in", "elements_out")},
        )  # fmt: skip


def _with_launches(export: Export, calls: pl.DataFrame) -> pl.DataFrame:
    """The calls with `correlation` of the first NCCL kernel that was launched inside; null where none was."""
    none = calls.with_columns(correlation=pl.lit(None, dtype=pl.Int64))
    kernels, runtime = export.table(KERNEL), export.table(RUNTIME)
    if kernels is None or runtime is None or export.table("StringIds") is None:
        return none
    needed = {"correlationId", "globalPid", "shortName"}
    if not needed <= set(export.columns(kernels)) or not {"correlationId", "globalTid"} <= set(export.columns(runtime)):
        return none
    names = [number for (number,) in export.query("SELECT id FROM StringIds WHERE value LIKE 'nccl%'")]
    columns: dict[str, Kind] = {"correlationId": "int", "globalPid": "int", "shortName": "int"}
    launched = [
        rows.filter(pl.col("shortName").is_in(names)).select("correlationId", process=pl.col("globalPid") // 2**24)
        for rows in export.chunks(KERNEL, columns)
    ]
    wanted = pl.concat(launched).unique()
    host: dict[str, Kind] = {"start": "int", "globalTid": "int", "correlationId": "int"}
    launches = pl.concat(
        [
            _on_threads(rows).join(wanted, on=["process", "correlationId"], how="semi")
            for rows in export.chunks(RUNTIME, host)
        ]
    )
    if not launches.height:
        return none
    joined = calls.sort("start").join_asof(
        launches.select("globalTid", launch="start", correlation="correlationId").sort("launch"),
        left_on="start",
        right_on="launch",
        by="globalTid",
        strategy="forward",
        check_sortedness=False,  # it can't be checked with `by`; both are sorted above
    )
    inside = pl.col("launch") <= pl.col("end")
    return joined.with_columns(correlation=pl.when(inside).then("correlation")).drop("launch")
