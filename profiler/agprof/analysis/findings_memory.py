"""The finding on frozen parameters that are kept wider than they need be."""

import polars as pl

from agprof.analysis.evidence import Evidence
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent

MIN_SHARE = 0.1
"""Of the rank's memory at the same moment: what half of them must be to be worth a word."""
_FP32 = 4


def frozen_in_fp32(evidence: Evidence) -> Finding | None:
    """Parameters that nobody trains lie on the device in four bytes each."""
    parts = evidence.view.tables["memory_parts"].filter(
        (pl.col("at") == "standing") & (pl.col("space") == "device") & (pl.col("source") == "measured")
    )
    frozen = parts.filter((pl.col("part") == "parameters") & (pl.col("detail") == "frozen")).drop_nulls("elements")
    worst: tuple[float, int, int, int] | None = None
    for rank, size, elements in frozen.select("rank", "bytes", "elements").iter_rows():
        total = parts.filter((pl.col("rank") == rank) & (pl.col("part") == "total"))["bytes"].max()
        if not isinstance(total, int) or total <= 0 or elements <= 0 or size < _FP32 * elements:
            continue
        share = size / 2 / total
        if share >= MIN_SHARE and (worst is None or share > worst[0]):
            worst = share, rank, size, elements
    if worst is None:
        return None
    share, rank, size, elements = worst
    return Finding(
        key="frozen-in-fp32",
        title=f"Frozen parameters take {format_value(size, 'bytes')} of a GPU in float32",
        evidence=(
            f"{elements:,} parameters of rank {rank} are not trained and lie there in {size / elements:.3g} bytes "
            "each, "
            f"{percent(2 * share)} of what it holds between steps: they need no precision for updates."
        ),
        section="memory",
        saving_ns_per_step=None,
        confidence="measured",
        change="Load what is not trained in half precision (`from_pretrained(.., dtype=torch.bfloat16)`, "
        "`module.to(torch.bfloat16)`) and run it under autocast, or cast its inputs.",
        check="the part `parameters` of the memory account halves, and the loss stays.",
    )
