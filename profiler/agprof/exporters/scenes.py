"""The scenes of a run one after the other, so that only one rank's is in memory at a time."""

from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from agprof.exporters.clocks import Clocks
from agprof.exporters.tracks import Scene, Slices, Tracks, longest
from agprof.exporters.tracks_device import trace_scene
from agprof.exporters.tracks_run import node_scene, rank_scene
from agprof.model.tables import TABLES
from agprof.store.reader import Run

_CHUNK_ROWS = 32_768
_CHUNK_BYTES = 16 * 2**20


def numbers(run: Run, scope: str) -> list[int]:
    """The ranks or nodes that left anything."""
    found = {stream.number for stream in run.streams if stream.scope == scope}
    for table in TABLES:
        if table.scope == scope:
            found.update(run.tables[table.name][scope].drop_nulls().unique())
    return sorted(found | set(run.traces) if scope == "rank" else found)


def rank_scenes(run: Run, rank: int, clocks: Clocks, tracks: Tracks) -> Iterator[Scene]:
    """A rank's trace, then its own tables. In this order a trace's threads keep their own numbers as track numbers.

    The own tables of an imported run were made from its trace.
    """
    if rank in run.traces:
        yield trace_scene(run.traces[rank], clocks, tracks)
    own = rank_scene(run, rank, clocks, tracks)
    yield replace(own, derived=rank in run.traces and "imported" in run.manifest)


def node_scenes(run: Run, clocks: Clocks, tracks: Tracks) -> Iterator[Scene]:
    for node in numbers(run, "node"):
        yield node_scene(run, node, clocks, tracks)


def chunks(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Instants or counters in pieces whose text takes some megabytes."""
    if not frame.is_empty():
        yield from frame.iter_slices(_rows(longest(frame)))


def slice_chunks(slices: Slices) -> Iterator[pl.DataFrame]:
    """Slices, finished, in pieces whose text takes some megabytes, also where names are a megabyte long."""
    if not slices.frame.is_empty():
        for rows in slices.frame.iter_slices(_rows(slices.longest)):
            yield slices.finish(rows)


def _rows(longest_text: int) -> int:
    return max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // (200 + longest_text)))
