"""The FLOPs of the profile step, on rank 0: counted and modelled by module, and DeepSpeed's figure of one forward.

Writes `modules`, `operations` and the facts `compute.*`.
"""

from typing import Any

from agprof.instruments.flops_count import FlopsCount, Totals
from agprof.instruments.flops_deepspeed import DeepSpeedFigure, is_used
from agprof.instruments.flops_tables import module_rows, operation_rows, parameters
from agprof.instruments.module_spans import ModuleSpans
from agprof.instruments.op_places import ModuleCall, Operation
from agprof.instruments.op_watch import OpWatch
from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder

INSTRUMENT = "flops"


class FlopsPart(StepPart):
    """Counts one step."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._roots: list[tuple[Any, int]] = []
        self._count: FlopsCount | None = None
        self._first: _FirstForward | None = None
        self._micro_steps: int | None = None

    def begin(self, step: int, watch: OpWatch) -> None:
        self._count = FlopsCount(self._torch, in_update=lambda: self._recorder.phase() == "optimizer")
        self._recorder.on_step_border.append(self._note_micro_steps)
        watch.listeners.append(self._listen)
        watch.on_call.append(self._called)
        watch.on_return.append(self._returned)

    def root(self, module: Any, number: int) -> None:
        self._roots.append((module, number))

    def end(self, step: int) -> None:
        count, first, micro_steps = self._count, self._first, self._micro_steps
        roots = list(self._roots)
        self.abandon()
        if count is None:
            return  # a fault has said why
        append = self._recorder.writer.append
        for module, number in roots:
            for row in module_rows(step, number, module, count):
                append("modules", row)
        for row in operation_rows(step, count):
            append("operations", row)
        self._write_facts(count, micro_steps)
        if first is not None:
            first.write_facts(self._recorder)

    def abandon(self) -> None:
        first, self._first = self._first, None
        self._count, self._micro_steps = None, None
        self._roots.clear()
        if self._note_micro_steps in self._recorder.on_step_border:
            self._recorder.on_step_border.remove(self._note_micro_steps)
        if first is not None:
            first.dispose()

    def _write_facts(self, count: FlopsCount, micro_steps: int | None) -> None:
        fact = self._recorder.fact
        fact("compute.profiler", "counted")
        fact("compute.micro_steps", micro_steps)
        fact("compute.forward_flops", count.forward)
        fact("compute.backward_flops", count.backward)
        fact("compute.recomputed_flops", count.recomputed)
        fact("compute.modelled_forward_flops", count.total.modelled_forward_flops)
        fact("compute.modelled_backward_flops", count.total.modelled_backward_flops)
        fact("compute.update_flops", count.update_flops)
        fact("compute.attention_flops", count.total.attention_flops)
        fact("compute.causal_attention_flops", None if count.unclear_flops else count.causal_flops)
        if count.unknown:
            fact("compute.uncounted_operations", count.unknown)

    def _note_micro_steps(self, _ended: int) -> None:
        self._micro_steps = self._recorder.micro_step

    # -- listening -------------------------------------------------------------------------------------------------

    def _listen(self, operation: Operation) -> None:
        if self._count is None:
            return
        try:
            self._count.listen(operation)
        except Exception as error:
            # Sums that lack an operation are wrong sums.
            self._count = None
            self._recorder.fault(INSTRUMENT, f"count {operation.function}"[:200], error)
            self._recorder.fact("compute.profiler_absent", "counting failed, see the faults")

    def _called(self, call: ModuleCall) -> None:
        count = self._count
        if count is None:
            return
        count.called(call)
        if self._first is None and self._is_training_forward(call):
            self._first = _FirstForward(self._recorder, self._torch, call, count)
            self._first.start()
        if self._first is not None and not call.recomputed and call.outermost is self._first.call:
            self._first.spans.begin(call, count.path(call) or type(call.module).__name__)

    def _returned(self, call: ModuleCall) -> None:
        if self._first is not None:
            self._first.spans.end(call)

    def _is_training_forward(self, call: ModuleCall) -> bool:
        """Of the root that trains; a forward without gradients (generation, evaluation) is not what a step is made
        of."""
        if call.outer is not None or not call.gradients or not self._roots:
            return False
        return call.module is max((root for root, _number in self._roots), key=_importance)


class _FirstForward:
    """The first forward of the step: its modules' spans, its own sums, and DeepSpeed's figure of it."""

    def __init__(self, recorder: Recorder, torch: Any, call: ModuleCall, count: FlopsCount) -> None:
        self.call = call
        self.spans = ModuleSpans(recorder)
        self._recorder = recorder
        self._torch = torch
        self._own: Totals = count.follow(call)
        self._figure: DeepSpeedFigure | None = None

    def start(self) -> None:
        if is_used():
            self._recorder.guard("deepspeed flops profiler", self._start_figure)()

    def _start_figure(self) -> None:
        self._figure = DeepSpeedFigure(self._torch, self.call.module)
        self._figure.start(self._recorder.guard("deepspeed flops profiler", self._read_figure, ends=True))

    def _read_figure(self) -> None:
        if self._figure is not None:
            try:
                self._figure.read()
            finally:
                self._figure.dispose()

    def write_facts(self, recorder: Recorder) -> None:
        recorder.fact("compute.first_micro_step_forward_flops", self._own.forward_flops)
        recorder.fact("compute.first_micro_step_backward_flops", self._own.backward_flops)
        if self._figure is not None and self._figure.forward_flops is not None:
            recorder.fact("compute.deepspeed_forward_flops", self._figure.forward_flops)
            recorder.fact("compute.deepspeed_params", self._figure.params)

    def dispose(self) -> None:
        """Safe to call twice."""
        self.spans.discard()
        if self._figure is not None:
            try:
                self._figure.dispose()
            except Exception as error:
                self._recorder.fault("deepspeed flops profiler", "dispose", error)


def _importance(module: Any) -> tuple[bool, int]:
    """The model that trains comes first, then the largest."""
    params, trainable = parameters(module)
    return trainable > 0, params
