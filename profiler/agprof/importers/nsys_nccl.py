"""NCCL's NVTX payloads in an Nsight Systems export (NCCL 2.20 and nsys 2024 or newer): sizes and communicators.

Layout of NVTX_EVENTS.binaryData as nsys 2026 exports it: domain u32, flags u32, schema u32, flags u32, payload bytes
u64, bytes in all u64 (32 + payload), little-endian; then the fields where NVTX_PAYLOAD_SCHEMA_ENTRIES puts them. What
does not agree with that is not decoded. Sizes are those that NCCL annotates (its collectives.cc): what one rank sends,
for reduce-scatter what one rank receives.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agprof.importers.nsys_export import Export, quoted

HEADER = struct.Struct("<IIIIQQ")
_NUMBERS = {5: "<i", 6: "<I", 9: "<q", 10: "<Q", 15: "<i", 16: "<I", 17: "<q", 18: "<Q", 22: "<Q"}
"""struct's letter for the integer types of nvToolsExtPayload.h that NCCL uses: INT, UINT, (U)LONGLONG, (U)INT32,
(U)INT64, SIZE."""
_MOST_EVENTS = 5_000_000
OPERATIONS = {
    "ncclAllReduce": "all_reduce",
    "ncclAllGather": "all_gather",
    "ncclReduceScatter": "reduce_scatter",
    "ncclBroadcast": "broadcast",
    "ncclBcast": "broadcast",
    "ncclReduce": "reduce",
    "ncclAllToAll": "all_to_all",
    "ncclAlltoAll": "all_to_all",
    "ncclGather": "gather",
    "ncclScatter": "scatter",
    "ncclSend": "send",
    "ncclRecv": "recv",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One annotated call of NCCL."""

    start: int
    end: int
    """In the export's own time."""
    thread: int
    """Serialized global id."""
    name: str
    communicator: int | None
    ranks: int | None
    rank: int | None
    bytes: int | None


def calls(export: Export) -> Iterator[Call]:
    """Every annotated call that can be decoded, in the file's order. Raises TraceError."""
    table = export.table("NVTX_EVENTS")
    schemas = _schemas(export)
    needed = {"start", "end", "globalTid", "domainId", "binaryData"}
    if table is None or not schemas or not needed <= set(export.columns(table)):
        return
    text, number = export.expression(table, "text"), export.expression(table, "textId")
    sql = (
        f"SELECT start, end, globalTid, domainId, {text}, {number}, binaryData FROM {quoted(table)} "
        f"WHERE binaryData IS NOT NULL AND end IS NOT NULL LIMIT {_MOST_EVENTS}"
    )
    for start, end, thread, domain, own, string, data in export.query(sql):
        if not (isinstance(start, int) and isinstance(end, int) and isinstance(thread, int)):
            continue
        fields = decode(data, domain, schemas)
        name = own if isinstance(own, str) else export.strings([string]).get(string, "")
        if fields is not None and name.startswith("nccl"):
            yield Call(
                start=start,
                end=end,
                thread=thread,
                name=name,
                communicator=fields.get("NCCL communicator ID"),
                ranks=fields.get("No. of ranks"),
                rank=fields.get("Rank"),
                bytes=fields.get("Message size [bytes]"),
            )


def ranks(export: Export) -> dict[int, tuple[int, int]]:
    """Rank and world size by process, from the largest communicator that it joined."""
    found: dict[int, tuple[int, int]] = {}
    for call in calls(export):
        if call.rank is None or call.ranks is None or not 0 <= call.rank < call.ranks:
            continue
        process = call.thread >> 24
        if process not in found or call.ranks > found[process][1]:
            found[process] = (call.rank, call.ranks)
    return found


Schema = Mapping[str, tuple[str, int]]
"""By a field's name: its format and its offset."""


def decode(data: object, domain: object, schemas: Mapping[tuple[int, int], Schema]) -> dict[str, int] | None:
    """The fields of a payload, or None when it is not laid out as expected."""
    raw = data.encode("latin-1", "replace") if isinstance(data, str) else data
    if not isinstance(raw, bytes) or len(raw) < HEADER.size or not isinstance(domain, int):
        return None
    own_domain, _, number, _, size, total = HEADER.unpack_from(raw)
    schema = schemas.get((domain, number))
    if own_domain != domain or schema is None or total != HEADER.size + size or total > len(raw):
        return None
    fields: dict[str, int] = {}
    for name, (letter, offset) in schema.items():
        if not 0 <= offset <= size - struct.calcsize(letter):
            return None
        fields[name] = struct.unpack_from(letter, raw, HEADER.size + offset)[0]
    return fields


def _schemas(export: Export) -> dict[tuple[int, int], dict[str, tuple[str, int]]]:
    table = export.table("NVTX_PAYLOAD_SCHEMA_ENTRIES")
    if table is None or not {"domainId", "schemaId", "type", "name"} <= set(export.columns(table)):
        return {}
    schemas: dict[tuple[int, int], dict[str, tuple[str, int]]] = {}
    offset = export.expression(table, "offset")
    sql = f"SELECT domainId, schemaId, type, name, {offset} FROM {quoted(table)} LIMIT 100000"
    for domain, schema, type_, name, begin in export.query(sql):
        if isinstance(domain, int) and isinstance(schema, int) and type_ in _NUMBERS and isinstance(name, str):
            place = begin if isinstance(begin, int) else 0  # the first field's offset is exported as NULL
            schemas.setdefault((domain, schema), {})[name] = (_NUMBERS[type_], place)
    return schemas
