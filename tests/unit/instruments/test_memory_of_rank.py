"""The account of a whole rank: parts exact to the byte, the total measured apart from them."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from agprof.instruments import memory_account
from agprof.instruments.memory_account import MemoryAccount
from agprof.instruments.memory_allocator import CpuAllocator, CudaAllocator, malloc_reader
from agprof.instruments.memory_holders import holders
from agprof.instruments.memory_totals import BY_MALLOC, Totals
from agprof.instruments.memory_walk import find_owners, owned
from agprof.instruments.op_watch import OpWatch

FP32 = 4
BATCH, WIDTH = 64, 256
PARAMETERS = WIDTH * WIDTH + WIDTH
BYTES = FP32 * PARAMETERS


class Job:
    """A loop whose step 1 is the profile step."""

    def __init__(self, rig, *, layers=2, frozen=0):
        self.rig = rig
        self.model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
        for layer in list(self.model)[:frozen]:
            layer.requires_grad_(False)
        self.optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad])
        self.errors = []

    def step(self):
        recorder = self.rig.recorder
        span = recorder.open("phase", "forward")
        loss = self.model(torch.randn(BATCH, WIDTH)).square().mean()
        recorder.close(span)
        span = recorder.open("phase", "backward")
        loss.backward()
        recorder.close(span)
        span = recorder.open("phase", "optimizer")
        self.optimizer.step()
        recorder.close(span)
        self.optimizer.zero_grad()
        recorder.end_step()

    def profiled(self, account, step=None):
        """One step under the account, as the profile step does it."""
        self.step()
        watch = OpWatch(torch, lambda where, error: self.errors.append((where, error)))
        account.begin(1, watch)
        watch.watch(self.model)
        account.root(self.model, 0)
        watch.start()
        try:
            (step or self.step)()
        finally:
            watch.remove()
            watch.stop()
        account.end(1)
        assert self.errors == []


def by_part(tables, at):
    sums = {}
    for row in tables["memory_parts"]:
        if row.at == at:
            assert row.space == "host"
            sums[row.part, row.detail] = sums.get((row.part, row.detail), 0) + row.bytes
    return sums


def closes(parts):
    """The rest that the parts leave of the total, in bytes."""
    return parts["total", ""] - sum(size for (part, _detail), size in parts.items() if part != "total")


@pytest.fixture
def account(rig):
    gc.collect()  # what other tests left
    return MemoryAccount(rig.recorder, torch)


LOOP = f"""
import torch

BATCH, WIDTH = {BATCH}, {WIDTH}
model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(2)])
aside = torch.nn.Linear(WIDTH, WIDTH).requires_grad_(False)  # called frozen, our other instruments would look at it
trained = list(model.parameters())
optimizer = OPTIMIZER
inside = None
for step in range(6):
    optimizer.zero_grad()
    values = torch.randn(BATCH, WIDTH)
    loss = model(values).square().mean()
    loss.backward()
    if step == 4 and inside:
        inside()
    if inside:
        values = loss = None
    optimizer.step()
"""
PRODUCT = FP32 * BATCH * WIDTH


@pytest.fixture
def run_loop(rank_process):
    """A rank whose step 4 is the profile step, in a process of its own: a counter of all allocations sees all tests."""

    def run(optimizer, more=""):
        script = LOOP.replace("OPTIMIZER", optimizer).replace("inside = None\n", more or "inside = None\n")
        result = rank_process.start(script, level="default")
        assert result.code == 0, result.log("stderr")
        tables = result.tables()
        assert not [row for row in tables.get("faults", []) if "memory" in row.instrument]
        return tables

    return run


def test_states_are_exact_and_the_account_closes(run_loop):
    tables = run_loop("torch.optim.Adam(trained)")
    standing = by_part(tables, "standing")
    # The step begins where the update before ended: gradients are there still, and so are the batch and the loss.
    assert closes(standing) == 0
    del standing["total", ""]
    assert standing == {
        ("parameters", "trainable"): 2 * BYTES,
        ("parameters", "frozen"): BYTES,
        ("gradients", ""): 2 * BYTES,
        ("optimizer_states", "exp_avg"): 2 * BYTES,
        ("optimizer_states", "exp_avg_sq"): 2 * BYTES,
        ("optimizer_states", "step"): 4 * FP32,
        ("inputs", "held by the job"): PRODUCT,
        ("activations", "left of the step before"): FP32,
    }
    peak = by_part(tables, "peak")
    assert peak["gradients", ""] == 2 * BYTES
    assert abs(closes(peak)) <= 2 * FP32  # a scalar of the loss that autograd holds
    assert {row.method for row in tables["memory_parts"] if row.part == "total"} == {CpuAllocator.METHOD}
    assert {row.elements for row in tables["memory_parts"] if row.detail == "exp_avg"} == {2 * PARAMETERS}


def test_the_peak_of_backward_is_the_closed_form(run_loop):
    """Highest is the last gradient, that of the first layer: what the others' backward needed has been freed."""
    tables = run_loop("torch.optim.SGD(trained, lr=0.1, foreach=False)")
    facts = {row.key: row.value for row in tables["facts"]}
    assert facts["memory.peak_phase"] == '"backward"'
    assert facts["memory.peak_module"] == '"0"'
    peak = by_part(tables, "peak")
    assert abs(closes(peak)) <= 2 * FP32
    assert peak["parameters", "trainable"] == 2 * BYTES
    assert peak["gradients", ""] == 2 * BYTES
    assert peak["inputs", "batch"] == PRODUCT  # this step's; the one before went when it was made
    assert ("activations", "forward") not in peak
    assert peak["activations", "loss"] == 2 * FP32  # and the gradient of one that backward begins with
    assert peak["temporary", "backward"] == PRODUCT  # the gradient of the first layer's result
    highest = max(row.live_bytes for row in tables["memory_curve"])
    assert highest == sum(size for (part, _), size in peak.items() if part != "total")
    largest = [row for row in tables["allocations"] if row.at == "peak"]
    assert largest[0].bytes == FP32 * WIDTH * WIDTH
    assert [row.bytes for row in largest] == sorted((row.bytes for row in largest), reverse=True)
    gradient = next(row for row in largest if row.part == "gradients")
    assert gradient.operation == "aten.mm.default"
    assert gradient.stack.endswith("script.py:14 <module>")  # loss.backward()


def test_what_only_the_counter_sees_stays_unexplained(run_loop):
    hidden = """
kept = []
def inside():
    # below Python's dispatch, where no instrument of tensors can see it
    with torch.utils._python_dispatch._disable_current_modes():
        kept.append(torch.empty(4_000_000, dtype=torch.uint8))
"""
    peak = by_part(run_loop("torch.optim.Adam(trained)", hidden), "peak")
    assert closes(peak) == pytest.approx(4_000_000, abs=2 * FP32)


def test_nothing_stays_behind(rig, account):
    job = Job(rig)
    died = []
    reference = weakref.ref(job.model)
    hooks = list(rig.recorder.on_phase_end)
    job.profiled(account)
    assert rig.recorder.on_phase_end == hooks
    assert "resize_" not in vars(torch.UntypedStorage)
    assert account._totals.now().cpu is None
    weakref.finalize(job.model[0].weight, died.append, "weight")
    del job
    gc.collect()
    assert reference() is None
    assert died == ["weight"]


def test_a_fault_of_the_walk_leaves_the_training_alone(rig, account, monkeypatch):
    monkeypatch.setattr(memory_account, "gradients", lambda _owners: 1 / 0)
    job = Job(rig)
    job.profiled(account)
    tables = rig.finish()
    assert {row.instrument for row in tables["faults"]} == {"memory account"}


def test_an_odd_owner_hides_nothing_of_the_others(rig):
    class Odd(torch.nn.Module):
        pass

    odd = Odd()
    odd._parameters = 5
    good = torch.nn.Linear(3, 5)
    owners, tensors = find_owners()
    del tensors
    found = {id(tensor) for tensor, part, *_ in owned(owners) if part == "parameters"}
    assert {id(good.weight), id(good.bias)} <= found
    del odd


def test_an_account_in_the_midst_of_the_step(rig, account):
    job = Job(rig)
    rows = []

    def step():
        job.step()
        rows.append(account.account_now())

    job.profiled(account, step)
    parts, allocations = rows[0]
    assert {row[1] for row in parts} == {row[1] for row in allocations} == {"oom"}
    assert (len(parts[0]), len(allocations[0])) == (9, 11)
    sizes = {(row[3], row[4]): row[5] for row in parts}
    assert sizes["parameters", "trainable"] >= 2 * BYTES
    assert sizes["total", ""] > 0


def test_an_account_without_a_profile_step(rig, account):
    job = Job(rig)
    job.step()
    parts, allocations = account.account_now()
    sizes = {(row[3], row[4]): row[5] for row in parts}
    assert sizes["optimizer_states", "exp_avg"] >= 2 * BYTES
    assert allocations[0][4] == FP32 * WIDTH * WIDTH


def test_an_account_never_raises(rig, account, monkeypatch):
    monkeypatch.setattr(memory_account, "find_owners", lambda: 1 / 0)
    assert account.account_now() == ([], [])
    (fault,) = rig.finish()["faults"]
    assert (fault.instrument, fault.where) == ("memory account", "account_now")


def test_the_counter_of_the_cpu_allocator_is_exact():
    allocator = CpuAllocator(torch)
    before = allocator.bytes
    one, two = torch.zeros(1000), torch.empty(77, dtype=torch.uint8)
    assert allocator.bytes - before == 4077
    del one
    assert allocator.bytes - before == 77
    allocator.stop()
    assert allocator.bytes is None
    del two


def test_a_second_counter_does_not_switch_the_first_one_off():
    first = CpuAllocator(torch)
    second = CpuAllocator(torch)
    assert second.bytes is None
    second.stop()
    before = first.bytes
    tensor = torch.zeros(10)
    assert first.bytes == before + 40
    first.stop()
    del tensor


def test_without_the_counter_malloc_tells_how_much_was_added(rig, monkeypatch):
    monkeypatch.setattr(CpuAllocator, "_open", lambda *_args: None)
    job = Job(rig, layers=8)
    job.profiled(MemoryAccount(rig.recorder, torch))
    tables = rig.finish()
    peak = by_part(tables, "peak")
    total = peak.pop(("total", ""))
    assert {row.method for row in tables["memory_parts"] if row.at == "peak" and row.part == "total"} == {BY_MALLOC}
    assert total == pytest.approx(sum(peak.values()), rel=0.1)


def test_malloc_in_use_follows_an_allocation():
    read = malloc_reader()
    assert read is not None
    before = read()
    tensor = torch.zeros(10_000_000)
    assert read() - before == pytest.approx(40_000_000, rel=0.01)
    del tensor


def cuda(values):
    """A CUDA device whose allocator says `values`: (allocated, reserved, peak), which the test changes."""
    stats = lambda _device: {  # noqa: E731
        "allocated_bytes": {"all": {"current": values["allocated"], "peak": values["peak"]}},
        "reserved_bytes": {"all": {"current": values["reserved"]}},
    }
    return SimpleNamespace(
        _C=SimpleNamespace(_cuda_memoryStats=stats),
        cuda=SimpleNamespace(is_initialized=lambda: True, current_device=lambda: 0),
    )


def test_the_device_total_is_what_its_allocator_reserves():
    values = {"allocated": 100, "reserved": 150, "peak": 100}
    totals = Totals(cuda(values), counts=False)
    tracker = SimpleNamespace(peak_bytes=100)
    standing = totals.begin(totals.now(), [], tracker)
    assert [(total.part, total.bytes) for total in standing] == [("total", 150), ("fragmentation", 50)]
    values.update(allocated=400, reserved=500, peak=420)
    totals.sample_slowly(tracker)
    peak = totals.peak([])
    assert [(total.space, total.part, total.bytes) for total in peak] == [
        ("device", "total", 500),
        ("device", "fragmentation", 80),
    ]
    assert "own peak" in peak[0].method


def test_a_peak_from_before_the_step_is_not_taken_for_the_steps():
    values = {"allocated": 100, "reserved": 1000, "peak": 900}
    allocator = CudaAllocator(cuda(values))
    values.update(allocated=300, reserved=1100)
    allocator.sample()
    values.update(allocated=200)
    allocator.sample()
    allocated, reserved, method = allocator.peak()
    assert (allocated, reserved) == (300, 1100)
    assert "its own peak is from before this step" in method


GENERATE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=8, n_head=2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
prompt = torch.ones(4, 2, dtype=torch.long)
for step in range(6):
    model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=0)
    model(prompt, labels=prompt).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_keys_and_values_of_a_generation(rank_process):
    result = rank_process.start(GENERATE, level="default", timeout_s=120)
    assert result.code == 0, result.log("stderr")
    parts = by_part(result.tables(), "generation")
    per_position = 2 * 4 * 32 * FP32  # keys and values of one layer for four sequences
    # The last token is not fed back: 41 positions. One layer's keys are there twice while they grow by one.
    whole = 8 * per_position * 41
    assert whole - 8 * per_position <= parts["kv_cache", ""] <= whole + per_position * 41
    assert abs(closes(parts)) <= 0.01 * parts["total", ""]


class Holder:
    def __init__(self, value):
        self.value = value


def test_who_holds_a_tensor():
    one, two = torch.zeros(3), torch.zeros(4)
    kept = Holder({"a": [one]})
    module = torch.nn.Linear(2, 2)
    module.cache = two
    found = holders([one, two], [])
    assert found == [f"{__name__}.Holder", None]
    assert kept.value["a"][0] is one
