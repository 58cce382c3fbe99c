"""The FLOPs of the profile step, on rank 0: counted and modelled by module, and DeepSpeed's figure of one forward.

Writes `modules`, `operations` and the facts `compute.*`.
"""

from typing import Any

from agprof.instruments.flops_count import FlopsCount
from agprof.instruments.flops_deepspeed import DeepSpeedFigure, is_used
from agprof.instruments.flops_tables import module_rows, operation_rows, parameters
from agprof.instruments.flops_totals import Totals
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
        self._late: _Counted | None = None
        """A step that the device had not done when it ended."""

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
        counted = _Counted(step, roots, count, micro_steps)
        if count.times.is_settled():
            self._write(counted)
        else:
            self._late = counted
            self._recorder.on_step_end.append(self._recorder.guard(INSTRUMENT, self._write_late))
            self._recorder.on_finish.append((INSTRUMENT, self._write_at_last))
        if first is not None:
            first.write_facts(self._recorder)

    def _write_late(self, _ended: int) -> None:
        if self._late is not None and self._late.count.times.is_settled():
            counted, self._late = self._late, None
            self._write(counted)

    def _write_at_last(self) -> None:
        self._write_late(0)
        if self._late is not None:
            counted, self._late = self._late, None
            counted.count.times.give_up()
            self._write(counted)

    def _write(self, counted: "_Counted") -> None:
        append, count = self._recorder.writer.append, counted.count
        count.times.settle()
        for module, number in counted.roots:
            for row in module_rows(counted.step, number, module, count):
                append("modules", row)
        for row in operation_rows(counted.step, count):
            append("operations", row)
        self._write_facts(count, counted.micro_steps)

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


class _Counted:
    """A step that is over."""

    def __init__(self, step: int, roots: list[tuple[Any, int]], count: FlopsCount, micro_steps: int | None) -> None:
        self.step = step
        self.roots = roots
        self.count = count
        self.micro_steps = micro_steps


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
