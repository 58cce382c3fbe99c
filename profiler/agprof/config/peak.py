"""`peak:` of a workload file: what the device of a rank can do."""

from typing import Annotated

from pydantic import Field

from agprof.config.section import Section

Tflops = Annotated[float, Field(gt=0, le=100_000)]


class TflopsSection(Section):
    """Dense TFLOP/s (1e12) of matrix products, by element type: without sparsity, with fp32 accumulation."""

    bf16: Tflops | None = None
    """bfloat16."""
    fp16: Tflops | None = None
    """float16."""
    tf32: Tflops | None = None
    """float32 on tensor cores; used where the run allows it (torch.backends.cuda.matmul.allow_tf32)."""
    fp32: Tflops | None = None
    """float32."""


class PeakSection(Section):
    """What the device of a rank can do. Each figure stands before that of agprof's own table."""

    tflops: TflopsSection = Field(default_factory=TflopsSection)
    """Dense TFLOP/s by element type: bf16, fp16, tf32, fp32."""
    bandwidth_gb_per_s: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Bandwidth of the device's memory in GB/s (1e9 bytes)."""
    source: Annotated[str, Field(max_length=500)] = ""
    """Where the figures come from; the report prints it beside them."""
