"""Exposed communication of a step split into bytes, bandwidth, latency, overlap, skew and a remainder, on two sides.

Calls that are in flight at the same time are served one after another: the time until a call is complete is its own
since the one before it was (its service). Of a matched call (all ranks of its group are here and it was seen to
complete) the shortest service over the ranks is transfer; what else of its service a caller stands in is waiting for
the last rank (skew); what of its transfer the caller does not stand in is hidden (overlap, negative). Per operation the
transfer is

    calls x alpha + wire bytes x (time per wire byte)

with alpha from `agprof bench-comm` (0 where it was not measured), wire bytes S x nccl-tests' bus factor. Two factors
that both change are told apart at the mean of the other on both sides (Shapley's value of two factors), so that
swapping the sides mirrors every part. Everything is in exact fractions of a nanosecond per rank and step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import polars as pl

from agprof.analysis.comm import bus_factor
from agprof.analysis.comm_calls import matched_calls
from agprof.analysis.comm_ceilings import alpha_of
from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.compare_waterfall import Part
from agprof.analysis.intervals import covered_until
from agprof.analysis.parts import standing_in_collectives
from agprof.model.format import format_value

ZERO = Fraction(0)
_Key = tuple[str, int]
"""Operation and size of the group."""
_MATCH = ["group", "op", "group_size", "bytes", "ordinal"]
"""What calls of different ranks have in common that are one collective, as `matched_calls` numbers them."""


@dataclass(slots=True, kw_only=True)
class OpAmounts:
    """One operation, per rank and steady step."""

    calls: Fraction = ZERO
    total_bytes: Fraction = ZERO
    wire_bytes: Fraction = ZERO
    transfer: Fraction = ZERO
    """ns of the shortest services over the ranks, latency included."""
    latency: Fraction = ZERO


@dataclass(slots=True, kw_only=True)
class CommAmounts:
    """One side, per rank and steady step."""

    exposed: Fraction = ZERO
    hidden: Fraction = ZERO
    skew: Fraction = ZERO
    split: Fraction = ZERO
    """Of `exposed`, what matched calls with known bytes account for."""
    ops: dict[str, OpAmounts] = field(default_factory=dict)


def communication_parts(baseline: ComparedSide, candidate: ComparedSide) -> list[Part]:
    """The parts of exposed communication; they add up to its mean on either side."""
    alphas = _alphas(baseline), _alphas(candidate)
    kinds = _kinds(baseline), _kinds(candidate)
    known = tuple({key for key in keys if key in alpha} for keys, alpha in zip(kinds, alphas, strict=True))
    # A latency that only one side knows would show as a difference.
    named = {key[0] for key in known[0] | known[1]}
    usable = named - {key[0] for keys, with_alpha in zip(kinds, known, strict=True) for key in keys - with_alpha}
    a, b = (
        side_amounts(side, {key: value for key, value in alpha.items() if key[0] in usable})
        for side, alpha in zip((baseline, candidate), alphas, strict=True)
    )
    return [*_transfer_parts(a, b, bool(usable)), *_other_parts(a, b)]


def _transfer_parts(a: CommAmounts, b: CommAmounts, with_latency: bool) -> list[Part]:
    names = sorted({*a.ops, *b.ops})
    pairs = [(name, a.ops.get(name, OpAmounts()), b.ops.get(name, OpAmounts())) for name in names]
    at_mean_rate = [_at_mean_rate(x, y) for _, x, y in pairs]
    moved = [(x.transfer - x.latency, y.transfer - y.latency) for _, x, y in pairs]
    bytes_a, bytes_b = (sum((rates[i] for rates in at_mean_rate), ZERO) for i in (0, 1))
    all_a, all_b = (sum((times[i] for times in moved), ZERO) for i in (0, 1))
    method = "transfer: shortest service over the ranks of matching calls; bytes at both sides' mean time per wire byte"
    return [
        _part("bytes", "Bytes", bytes_a, bytes_b, _bytes_evidence(pairs), method),
        _part(
            "bandwidth", "Bandwidth", all_a - bytes_a, all_b - bytes_b, _rate_evidence(pairs),
            "transfer less what its bytes take at the mean time per wire byte of both sides",
        ),
        _part(
            "latency", "Latency",
            sum((x.latency for _, x, _ in pairs), ZERO), sum((y.latency for _, _, y in pairs), ZERO),
            _calls_evidence(pairs),
            "calls x alpha of `agprof bench-comm`, at most the call's transfer" if with_latency
            else "of calls that move no data; that of others was not measured (agprof bench-comm) and is in bandwidth",
        ),
    ]  # fmt: skip


def _other_parts(a: CommAmounts, b: CommAmounts) -> list[Part]:
    return [
        _part(
            "overlap", "Hidden", -a.hidden, -b.hidden,
            f"{_ns(a.hidden)} and {_ns(b.hidden)} of transfer in which the caller did not stand",
            "transfer less the caller's time in it, negative",
        ),
        _part(
            "skew", "Waiting for the last rank", a.skew, b.skew,
            f"{_ns(a.skew)} and {_ns(b.skew)} per rank and step",
            "time in matched calls beyond the shortest service over their ranks",
        ),
        _part(
            "other", "Not split", a.exposed - a.split, b.exposed - b.split,
            "calls that could not be matched across ranks, whose bytes are not known, or that were complete before the "
            "caller went on",
            "remainder",
        ),
    ]  # fmt: skip


def _part(key: str, label: str, a: Fraction, b: Fraction, evidence: str, method: str) -> Part:
    return Part(
        key=f"communication.{key}", label=label, group="communication", baseline=a, candidate=b, evidence=evidence,
        method=method,
    )  # fmt: skip


def _at_mean_rate(a: OpAmounts, b: OpAmounts) -> tuple[Fraction, Fraction]:
    """ns that each side's wire bytes take at the mean time per byte; of the side that has it when only one has."""
    rates = [(op.transfer - op.latency) / op.wire_bytes for op in (a, b) if op.wire_bytes]
    mean = sum(rates, ZERO) / len(rates) if rates else ZERO
    return a.wire_bytes * mean, b.wire_bytes * mean


def side_amounts(side: ComparedSide, alphas: Mapping[_Key, int]) -> CommAmounts:
    """Mean over a side's runs. `alphas`: latency in ns by operation and size of the group."""
    mean = CommAmounts()
    share = Fraction(1, len(side.runs))
    for run in side.runs:
        found = _run_amounts(run, alphas)
        for name in ("exposed", "hidden", "skew", "split"):
            setattr(mean, name, getattr(mean, name) + share * getattr(found, name))
        for op, amounts in found.ops.items():
            into = mean.ops.setdefault(op, OpAmounts())
            for name in OpAmounts.__slots__:
                setattr(into, name, getattr(into, name) + share * getattr(amounts, name))
    return mean


def _run_amounts(run: ComparedRun, alphas: Mapping[_Key, int]) -> CommAmounts:
    steady = run.view.steady
    if not steady.height:
        return CommAmounts()
    per = Fraction(1, steady.height)
    found = CommAmounts(exposed=int(steady["communication"].sum()) * per)
    for row in _sums(run, steady, alphas).iter_rows(named=True):
        n = row["group_size"]
        factor = bus_factor(row["op"], n)
        op = found.ops.setdefault(row["op"], OpAmounts())
        op.calls += row["calls"] * per
        op.transfer += row["transfer"] * per
        if factor is None:
            op.latency += row["transfer"] * per
        else:
            op.latency += row["latency"] * per
            op.total_bytes += row["total"] * per
            op.wire_bytes += row["total"] * Fraction(factor).limit_denominator(max(1, n)) * per
        found.hidden += (row["transfer"] - row["shown"]) * per
        found.skew += (row["stood"] - row["shown"]) * per
        found.split += row["stood"] * per
    return found


def _sums(run: ComparedRun, steady: pl.DataFrame, alphas: Mapping[_Key, int]) -> pl.DataFrame:
    """Per operation and size of the group, over the matched calls of steady steps: integer sums."""
    moves = ~pl.col("op").str.contains("barrier")
    known = pl.col("transfer_ns").is_not_null() & (pl.col("bytes").is_not_null() | ~moves)
    alpha = pl.DataFrame(
        [(op, n, ns) for (op, n), ns in alphas.items()],
        schema={"op": pl.String, "group_size": pl.Int64, "alpha": pl.Int64},
        orient="row",
    )
    return (
        _served(run)
        .join(steady.select("rank", "step"), on=["rank", "step"], how="semi")
        .filter(known)
        .join(alpha, on=["op", "group_size"], how="left")
        .group_by("op", "group_size")
        .agg(
            calls=pl.len(),
            total=pl.col("bytes").fill_null(0).sum(),
            transfer=pl.col("transfer_ns").sum(),
            latency=pl.min_horizontal(pl.col("alpha").fill_null(0), "transfer_ns").sum(),
            shown=pl.min_horizontal("stood", "transfer_ns").sum(),
            stood=pl.col("stood").sum(),
        )
        .sort("op", "group_size")
    )


def _served(run: ComparedRun) -> pl.DataFrame:
    """All calls that were seen to complete, with what of their service the caller stood in (`stood`).

    `transfer_ns` becomes the shortest service over the ranks where the call is matched.
    """
    view = run.view
    calls = matched_calls(view).filter(pl.col("duration_ns").is_not_null() & (pl.col("duration_ns") >= 0))
    calls = calls.with_columns(done=pl.col("start_ns") + pl.col("duration_ns")).sort("rank", "done", "start_ns")
    calls = calls.with_columns(
        begun=pl.max_horizontal(
            "start_ns", pl.col("done").shift(1).over("rank")
        )  # sorted: the last one's is the latest
    )
    standing = standing_in_collectives(view.tables["collectives"], view.tables["waits"], view.tables["spans"])
    ends = covered_until(calls.select("rank", at_ns="done"), standing)
    stood = ends - covered_until(calls.select("rank", at_ns="begun"), standing)
    own = pl.min_horizontal(pl.col("done") - pl.col("begun"), "transfer_ns")
    return calls.with_columns(stood=stood).with_columns(
        transfer_ns=pl.when(pl.col("transfer_ns").is_not_null()).then(own.min().over(_MATCH))
    )


def _kinds(side: ComparedSide) -> set[_Key]:
    """Operations that move data, with the sizes of their groups."""
    found: set[_Key] = set()
    for run in side.runs:
        rows = run.view.tables["collectives"].select("op", "group_size").unique().iter_rows()
        found |= {(op, n) for op, n in rows if bus_factor(op, n) is not None}
    return found


def _alphas(side: ComparedSide) -> dict[_Key, int]:
    """Latency in ns by operation and size of the group, of the run's own measured ceilings."""
    found: dict[_Key, int] = {}
    for op, size in _kinds(side):
        alphas = [alpha for run in side.runs if (alpha := alpha_of(run.view, op, size)) is not None]
        if alphas:
            found[op, size] = max(0, round(alphas[0]))
    return found


_Pairs = Sequence[tuple[str, OpAmounts, OpAmounts]]


def _ns(value: Fraction) -> str:
    return format_value(float(value), "ns")


def _bytes_evidence(pairs: _Pairs) -> str:
    a, b = (sum((pair[at].total_bytes for pair in pairs), ZERO) for at in (1, 2))  # type: ignore[union-attr]
    return f"{format_value(float(a), 'bytes')} and {format_value(float(b), 'bytes')} a step and rank"


def _rate_evidence(pairs: _Pairs) -> str:
    """Of the operation that takes longest: `24 all-reduce calls of 4.20 MiB at 118 MB/s against 1.90 GB/s`."""
    both = [pair for pair in pairs if pair[1].wire_bytes and pair[2].wire_bytes]
    if not both:
        return "no operation that both sides have moves data"
    name, a, b = max(both, key=lambda pair: (pair[1].transfer + pair[2].transfer, pair[0]))
    rates = [op.wire_bytes * 10**9 / op.transfer if op.transfer else None for op in (a, b)]
    of_b, of_a = (format_value(float(rate), "bytes/s") if rate is not None else "no time" for rate in reversed(rates))
    size = format_value(float(b.total_bytes / b.calls), "bytes")
    calls = f"{format_value(float(b.calls), '1')} {name.replace('_', '-')} call{'' if b.calls == 1 else 's'}"
    return f"{calls} of {size} a step at a bus bandwidth of {of_b} against {of_a}"


def _calls_evidence(pairs: Iterable[tuple[str, OpAmounts, OpAmounts]]) -> str:
    listed = list(pairs)
    a, b = (sum((pair[at].calls for pair in listed), ZERO) for at in (1, 2))  # type: ignore[union-attr]
    return f"{format_value(float(a), '1')} and {format_value(float(b), '1')} calls a step and rank"
