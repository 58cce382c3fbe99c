"""The tables of nsys's SQLite export that we write: those of version 2022.4, which later versions still read."""

import sqlite3
from collections.abc import Mapping, Sequence

MAX_TEXT = 100_000
"""Characters of a text; nsys stats reads them all into memory."""

TABLES_WE_FILL: Sequence[str] = (
    "CREATE TABLE IF NOT EXISTS StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS ThreadNames (nameId INTEGER NOT NULL, priority INTEGER, globalTid INTEGER)",
    "CREATE TABLE IF NOT EXISTS PROCESSES (globalPid INTEGER, pid INTEGER, name TEXT)",
    "CREATE TABLE IF NOT EXISTS NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, "
    "rangeId INTEGER, category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, "
    "textId INTEGER, domainId INTEGER, uint64Value INTEGER, int64Value INTEGER, doubleValue REAL, "
    "uint32Value INTEGER, int32Value INTEGER, floatValue REAL, jsonTextId INTEGER, jsonText TEXT)",
)
"""nsys exports only tables that hold rows: in a database of its own each of these may be missing."""

TABLES: Sequence[str] = (
    *TABLES_WE_FILL,
    "CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT)",
    "CREATE TABLE ANALYSIS_DETAILS (globalVid INTEGER NOT NULL, duration INTEGER NOT NULL, "
    "startTime INTEGER NOT NULL, stopTime INTEGER NOT NULL)",
    "CREATE TABLE EXPORT_META_DATA (name TEXT NOT NULL, value TEXT)",
    "CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT)",
    "CREATE TABLE ENUM_NSYS_EVENT_TYPE (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT)",
    "CREATE TABLE ENUM_CUDA_MEMCPY_OPER (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT)",
)

CUPTI_TABLES: Sequence[str] = (
    "CREATE TABLE IF NOT EXISTS CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
    "globalPid INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, "
    "launchType INTEGER, cacheConfig INTEGER, registersPerThread INTEGER NOT NULL, gridX INTEGER NOT NULL, "
    "gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL, blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, "
    "blockZ INTEGER NOT NULL, staticSharedMemory INTEGER NOT NULL, dynamicSharedMemory INTEGER NOT NULL, "
    "localMemoryPerThread INTEGER NOT NULL, localMemoryTotal INTEGER NOT NULL, gridId INTEGER NOT NULL, "
    "sharedMemoryExecuted INTEGER, graphNodeId INTEGER, sharedMemoryLimitConfig INTEGER)",
    "CREATE TABLE IF NOT EXISTS CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
    "globalPid INTEGER, bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, deprecatedSrcId INTEGER, srcKind INTEGER, "
    "dstKind INTEGER, srcDeviceId INTEGER, srcContextId INTEGER, dstDeviceId INTEGER, dstContextId INTEGER, "
    "migrationCause INTEGER, graphNodeId INTEGER, virtualAddress INTEGER)",
    "CREATE TABLE IF NOT EXISTS CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL, streamId INTEGER NOT NULL, correlationId INTEGER, "
    "globalPid INTEGER, value INTEGER NOT NULL, bytes INTEGER NOT NULL, graphNodeId INTEGER, memKind INTEGER)",
    "CREATE TABLE IF NOT EXISTS CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, "
    "eventClass INTEGER NOT NULL, globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, "
    "returnValue INTEGER NOT NULL, callchainId INTEGER)",
)

COPY_KINDS: Mapping[str, int] = {"HtoD": 1, "DtoH": 2, "DtoD": 8, "HtoH": 9, "PtoP": 10}
"""By the word that Kineto's and CUPTI's names of copies hold."""

ENUMS: Mapping[str, Sequence[tuple[int, str, str]]] = {
    "ENUM_NSYS_EVENT_TYPE": (
        (33, "NvtxCategory", "NVTX Category"),
        (34, "NvtxMark", "NVTX Mark"),
        (39, "NvtxThread", "NVTX Thread"),
        (59, "NvtxPushPopRange", "NVTX Push/Pop Range"),
        (60, "NvtxStartEndRange", "NVTX Start/End Range"),
        (75, "NvtxDomainCreate", "NVTX Domain Create"),
        (76, "NvtxDomainDestroy", "NVTX Domain Destroy"),
    ),
    "ENUM_CUDA_MEMCPY_OPER": (
        (0, "CUDA_MEMCPY_OPER_UNKNOWN", "Unknown"),
        (1, "CUDA_MEMCPY_OPER_HTOD", "Host-to-Device"),
        (2, "CUDA_MEMCPY_OPER_DTOH", "Device-to-Host"),
        (8, "CUDA_MEMCPY_OPER_DTOD", "Device-to-Device"),
        (9, "CUDA_MEMCPY_OPER_HTOH", "Host-to-Host"),
        (10, "CUDA_MEMCPY_OPER_PTOP", "Peer-to-Peer"),
    ),
}


class Names:
    """Ids of texts in table StringIds, above those that are there."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._next = (database.execute("SELECT max(id) FROM StringIds").fetchone()[0] or 0) + 1
        self._ids: dict[str, int] = {}

    def id(self, text: str) -> int:
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = self._next
            self._next += 1
            # SQLite's shell and others end a text at its first NUL.
            shown = text[:MAX_TEXT].replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
            self._database.execute("INSERT INTO StringIds (id, value) VALUES (?, ?)", (found, shown))
        return found
