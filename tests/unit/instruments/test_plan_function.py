"""What a model function may return, and what is counted of it."""

from typing import Any

import pytest
import torch
from torch import nn

from agprof.analysis.plan_memory import model_states, peak_memory
from agprof.instruments.memory_tracker import MemoryTracker
from agprof.instruments.op_watch import watching
from agprof.instruments.plan import variants_of
from agprof.instruments.plan_count import count_kind, count_scenario, group_params, model_size, update_copies
from agprof.instruments.plan_function import FunctionError, Kind, Planned, call, find_function
from agprof.model.zero import zero_memory

WIDTH, ROWS = 32, 8
FLOAT = 4


def stack(layers: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(WIDTH, WIDTH, False), nn.ReLU())))


def micro_step(module: nn.Module, rows: int = ROWS, **changes: Any) -> dict[str, Any]:
    return {
        "name": "text",
        "per_step": 1,
        "run": lambda: module(torch.zeros(rows, WIDTH, device="meta")).sum(),
    } | changes


def returned(**changes: Any) -> dict[str, Any]:
    module = stack(1)
    return {"module": module, "micro_steps": [micro_step(module)]} | changes


def planned(value: Any) -> Planned:
    return call(lambda _arguments, _asked: value, [], {"device": "cpu", "ranks": 2}, torch)


def counted(layers: int, rows: int = ROWS) -> Any:
    module = stack(layers)
    step = micro_step(module, rows)
    return count_kind(module, Kind("text", 1.0, "", step["run"]), torch)


# -- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_flops_of_a_stack(layers: int) -> None:
    product = 2 * ROWS * WIDTH * WIDTH
    kind = counted(layers)
    assert kind.forward_flops == layers * product
    # each weight's gradient, and each input's but that of the first
    assert kind.backward_flops == (2 * layers - 1) * product
    assert kind.recomputed_flops == 0


def test_each_layer_keeps_its_relu_and_the_batch_is_an_input() -> None:
    four, five = counted(4), counted(5)
    assert five.activation_bytes - four.activation_bytes == ROWS * WIDTH * FLOAT
    assert counted(4, rows=2 * ROWS).activation_bytes > four.activation_bytes


def test_gradients_are_told_apart_from_activations() -> None:
    few_rows = counted(6, rows=1)
    weight = WIDTH * WIDTH * FLOAT
    # with one row the peak is all six gradients, the last of which is still on its way
    assert few_rows.activation_and_gradient_bytes >= 6 * weight
    assert few_rows.activation_bytes < 2 * weight


def test_the_model_is_left_without_gradients() -> None:
    module = stack(2)
    count_kind(module, Kind("text", 1.0, "", micro_step(module)["run"]), torch)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_batch_made_before_is_an_input() -> None:
    module = stack(1)
    batch = torch.zeros(ROWS, WIDTH, device="meta")
    kind = count_kind(module, Kind("text", 1.0, "", lambda: module(batch).sum()), torch)
    assert kind.input_bytes == ROWS * WIDTH * FLOAT


def test_sizes_count_shared_parameters_once() -> None:
    module = stack(2)
    module.append(module[0])
    module[2].requires_grad_(False)
    size = model_size(module)
    assert (size.params, size.trainable_params, size.frozen_params) == (2 * WIDTH**2, WIDTH**2, WIDTH**2)
    assert size.by_dtype == (("float32", 2 * WIDTH**2, WIDTH**2),)
    assert size.largest_layer_params == WIDTH**2


def test_fsdp2_s_group_is_a_block_and_what_is_in_none() -> None:
    with torch.device("meta"):
        blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, size, False), nn.Linear(size, 4, False)) for size in (2, 8, 3)
        )
        model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "layers": blocks, "head": nn.Linear(4, 10, False)})
    model["head"].weight = model["embedding"].weight
    assert group_params(model) == 10 * 4 + 2 * 4 * 8
    assert group_params(nn.Linear(3, 5, False)) == 15


def test_fsdp2_has_a_group_of_parameters_whole_in_backward() -> None:
    layers = 3
    module = stack(layers)
    value = {"module": module, "micro_steps": [micro_step(module)], "framework": "fsdp2", "optimizer_kernel": "fused"}
    counted_ = count_scenario(planned(value), "as written", "as written", torch, 0.0)
    parts = {part.part: part.bytes for part in peak_memory(counted_, "gpu").parts}
    assert parts["parameters"] == FLOAT * WIDTH**2 * (layers / 2 + 1)  # two ranks; each layer is a block
    update = zero_memory(model_states(counted_), "update")
    assert update.parameters.device == FLOAT * WIDTH**2 * layers / 2


def test_torch_s_adam_on_a_cpu_has_three_copies_of_neighbours_at_once() -> None:
    """As torch 2.13 does it, held against torch itself."""
    assert [update_copies(sizes) for sizes in ([], [5], [5, 100, 3], [90, 100])] == [0, 10, 205, 290]
    sizes = [1_000, 64_000, 64_000, 9_000]
    parameters = [nn.Parameter(torch.ones(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.AdamW(parameters)
    optimizer.step()
    tracker = MemoryTracker(torch, stacks=False)
    with watching(torch, listeners=[tracker.listen]):
        optimizer.step()
    assert tracker.peak_bytes == pytest.approx(FLOAT * update_copies(sizes), abs=100)


def test_a_forward_without_a_loss_has_no_backward() -> None:
    module = stack(1)
    step = micro_step(module)["run"]

    def score() -> None:
        with torch.no_grad():
            step()

    assert count_kind(module, Kind("score", 1.0, "", score), torch).backward_flops == 0


# -- what is returned ------------------------------------------------------------------------------------------------


def test_defaults_and_objects() -> None:
    class Returned:
        def __init__(self, **values: Any) -> None:
            self.__dict__.update(values)

    for value in (returned(), Returned(**returned())):
        plan = planned(value)
        assert plan.job.framework == "plain"
        assert (plan.job.ranks, plan.job.accumulation, plan.job.zero_stage) == (2, 1, 0)
        assert plan.job.dtype == "float32"
        assert plan.can_change == frozenset()
        assert [kind.name for kind in plan.kinds] == ["text"]
    assert planned(returned(framework="horovod")).job.framework == "plain"


CPU_MODULE = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "returned None, not a mapping or an object"),
        (3, "returned 3, not a mapping"),
        ([], "returned [], not a mapping"),
        ({}, "returned nothing named `module`"),
        (object(), "returned nothing named `module`"),
        ({"module": "x"}, "`module` is 'x', not a torch.nn.Module"),
        ({"module": CPU_MODULE}, "`module` holds weight on cpu; build it on the meta device"),
        ({"module": nn.Identity()}, "`module` has no parameters"),
        (returned(micro_steps=[]), "`micro_steps` is [], not a list of 1 to 100 kinds"),
        (returned(micro_steps={}), "`micro_steps` is {}, not a list"),
        (returned(micro_steps=[3]), "`micro_steps[0]` is 3, not a mapping"),
        (returned(micro_steps=[{"run": 3, "per_step": 1}]), "`run` is 3, not a function"),
        (returned(micro_steps=[{"run": print, "per_step": "2"}]), "`per_step` is '2', not a number above 0"),
        (returned(micro_steps=[{"run": print, "per_step": float("nan")}]), "`per_step` is nan, not a number above 0"),
        (returned(can_change="lora"), "`can_change` is 'lora', not a list of"),
        (returned(can_change=["speed"]), "`can_change` is ['speed'], not a list of"),
        (returned(can_change=3), "`can_change` is 3, not a list of"),
        (returned(framework="<script>"), "`framework` is '<script>'; known are"),
        (returned(optimizer="lion"), "`optimizer` is 'lion'; known are"),
        (returned(optimizer_kernel="x"), "`optimizer_kernel` is 'x', not one of"),
        (returned(zero_stage=4), "`zero_stage` is 4, not a whole number from 0 to 3"),
        (returned(zero_stage=True), "`zero_stage` is True, not a whole number"),
        (returned(accumulation=0), "`accumulation` is 0, not a whole number from 1"),
        (returned(ranks=10**20), "`ranks` is 100000000000000000000, not a whole number"),
        (returned(micro_batch="1" * 10**6), "not a whole number from 1"),
        (returned(framework="\x1b[31m\n"), "known are"),
    ],
)
def test_what_is_wrong_is_one_clear_sentence(value: Any, said: str) -> None:
    with pytest.raises(FunctionError, match=r"\A[ -~]+\Z") as error:
        planned(value)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


def test_what_a_function_raises_is_told() -> None:
    def raises(_arguments: list[str], _asked: dict[str, Any]) -> None:
        raise ValueError("two\nlines " + "x" * 1000)

    def ends(_arguments: list[str], _asked: dict[str, Any]) -> None:
        raise SystemExit("usage: train")

    with pytest.raises(FunctionError, match=r"^raised ValueError: two lines x+$"):
        call(raises, [], {}, torch)
    with pytest.raises(FunctionError, match="ended the process with 'usage: train' instead of returning a model"):
        call(ends, [], {}, torch)
    with pytest.raises(FunctionError, match=r"raised TypeError: .*takes 0 positional arguments"):
        call(lambda: None, [], {}, torch)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("no_such_package.plan:model", "no_such_package.plan can't be imported: ModuleNotFoundError"),
        ("agprof.model.zero:no_such", "agprof.model.zero has no function 'no_such'"),
        ("agprof.model.zero:FP32", "agprof.model.zero has no function 'FP32'"),
    ],
)
def test_functions_that_there_are_not(reference: str, said: str) -> None:
    with pytest.raises(FunctionError) as error:
        find_function(reference)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: 3, "returned 3, not the loss, a tensor of one value"),
        (lambda: torch.zeros(2, device="meta", requires_grad=True), "not the loss, a tensor of one value"),
        (lambda: 1 / 0, "failed on the meta device: ZeroDivisionError"),
    ],
)
def test_micro_steps_that_fail(run: Any, said: str) -> None:
    module = stack(1)
    plan = planned({"module": module, "micro_steps": [{"name": "<b>\n", "per_step": 1, "run": run}]})
    with pytest.raises(FunctionError) as error:
        count_scenario(plan, "as written", "as written", torch, 0.0)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# -- what is varied --------------------------------------------------------------------------------------------------


def test_variants_follow_what_the_job_says_of_itself() -> None:
    job = planned(returned(micro_batch=1, sequence_length=128, checkpointing=False, lora=True)).job
    assert [variant.label for variant in variants_of(job)] == [
        "micro-batch 2", "without LoRA", "with activation checkpointing", "sequence length 256", "micro-batch 4",
        "sequence length 64",
    ]  # fmt: skip
    assert list(variants_of(planned(returned()).job)) == []
    halved = planned(returned(micro_batch=8)).job
    assert [variant.asked for variant in variants_of(halved)] == [
        {"micro_batch": 16}, {"micro_batch": 4}, {"micro_batch": 32},
    ]  # fmt: skip
