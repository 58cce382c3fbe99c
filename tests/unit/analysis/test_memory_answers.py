"""The memory account closes whatever was written; formulas stand beside it for the run's own stage and the others."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.memory_account import PARTS, memory_accounts
from agprof.analysis.memory_zero import formula_bytes, is_this_run, known_states, zero_rows
from agprof.analysis.run import analyse
from agprof.analysis.view import prepare
from agprof.model.answers import RunAnswers
from agprof.model.memory_answers import MemoryAccount, MemoryAnswer, MemoryPart
from agprof.model.tables import MEMORY_PARTS
from agprof.model.zero import ModelStates
from agprof.model.zero_estimators import estimate_zero2, estimate_zero3
from agprof.store import layout
from agprof.store.reader import read_run, schema
from synthetic import BOOT_NS, HOSTILE, MIB, build_run, rank_header, write_stream
from synthetic_memory import FROZEN, PEAK_MODULE, TRAINED, UNEXPLAINED, peak_parts


def answers(path: Path, **options: Any) -> RunAnswers:
    return analyse(read_run(build_run(path / "run", **options)))


def memory(path: Path, **options: Any) -> MemoryAnswer:
    return answers(path, **options).memory


def account(answer: MemoryAnswer, at: str, rank: int = 0, space: str = "host") -> MemoryAccount:
    return next(a for a in answer.accounts if (a.at, a.rank, a.space) == (at, rank, space))


def part(of: MemoryAccount, name: str) -> MemoryPart:
    return next(part for part in of.parts if part.part == name)


# -- the account closes ---------------------------------------------------------------------------------------------

sizes = st.integers(0, 2**45)
rows = st.tuples(
    st.integers(0, 2), st.integers(3, 5), st.sampled_from(["standing", "peak", "oom", "never"]),
    st.sampled_from(["device", "host", "moon"]), st.sampled_from(["total", "unexplained", "new", *PARTS]),
    st.sampled_from(["", "trainable", "frozen"]), sizes, st.none(),
    st.sampled_from(["measured", "modelled", "guessed"]), st.text(max_size=5),
)  # fmt: skip


def table(values: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(values, schema={"rank": pl.Int64, **_columns()}, orient="row")


def _columns() -> dict[str, Any]:
    return {name: kind for name, kind in schema(MEMORY_PARTS).items() if name != "rank"}


def view_of(frame: pl.DataFrame, facts: Mapping[int, Mapping[str, Any]] | None = None) -> Any:
    return SimpleNamespace(tables={"memory_parts": frame}, facts=facts or {})


@given(st.lists(rows, max_size=40), st.dictionaries(st.sampled_from(PARTS), st.floats(0, 1e12)))
def test_parts_and_the_unexplained_rest_are_the_total_exactly(
    values: list[tuple[Any, ...]], formula: dict[str, float]
) -> None:
    frame = table(values)
    before = frame.clone()
    accounts = memory_accounts(view_of(frame), lambda _rank, _moment, _space: formula)
    assert frame.equals(before)
    keys = [(a.rank, a.at, a.space) for a in accounts]
    assert len(set(keys)) == len(keys)
    wanted = {(v[0], v[2], v[3]) for v in values if v[2] != "never" and v[3] != "moon"}
    assert set(keys) == wanted
    for found in accounts:
        assert sum(p.bytes for p in found.parts) == found.total.value
        assert part(found, "unexplained").bytes == found.unexplained_bytes
        assert found.parts[-1].part == "unexplained"
        assert len({p.part for p in found.parts}) == len(found.parts)
        for one in found.parts:
            if one.details:
                assert sum(size for _, size in one.details) == one.bytes
        if found.total.value:
            assert sum(p.share or 0.0 for p in found.parts) == pytest.approx(1, abs=1e-6)


def test_of_an_account_written_twice_the_later_counts() -> None:
    def written(step: int, size: int) -> list[tuple[Any, ...]]:
        head = (0, step, "peak", "host")
        return [
            (*head, "total", "", size, None, "measured", ""),
            (*head, "parameters", "", 10, None, "measured", "walked"),
        ]

    (found,) = memory_accounts(view_of(table([*written(4, 100), *written(5, 30)])), lambda *_: {})
    assert (found.step, found.total.value, found.unexplained_bytes) == (5, 30, 20)


def test_without_a_measured_total_the_sum_is_no_measurement() -> None:
    frame = table([(0, 4, "peak", "host", "activations", "forward", 7, None, "measured", "")])
    (found,) = memory_accounts(view_of(frame), lambda *_: {})
    assert (found.total.value, found.total.source, found.unexplained_bytes) == (7, "modelled", 0)


def test_parts_that_say_too_much_leave_less_than_nothing() -> None:
    head = (0, 4, "peak", "host")
    frame = table([
        (*head, "total", "", 5, None, "measured", ""),
        (*head, "activations", "", 7, None, "modelled", ""),
    ])  # fmt: skip
    (found,) = memory_accounts(view_of(frame), lambda *_: {})
    assert found.unexplained_bytes == -2
    assert part(found, "activations").source == "modelled"


def test_a_part_that_the_formula_has_and_nobody_found_is_shown() -> None:
    frame = table([(0, 4, "standing", "host", "total", "", 100, None, "measured", "")])
    (found,) = memory_accounts(view_of(frame), lambda *_: {"master_weights": 40.0, "buckets": 5.0})
    assert (part(found, "master_weights").bytes, part(found, "master_weights").formula_bytes) == (0, 40.0)
    assert found.unexplained_bytes == 100


# -- of a whole run ---------------------------------------------------------------------------------------------------


def test_a_cpu_run(tmp_path: Path) -> None:
    answer = memory(tmp_path)
    assert [(a.rank, a.at, a.space) for a in answer.accounts] == [
        (rank, at, "host") for rank in (0, 1) for at in ("standing", "peak")
    ]
    assert answer.account_hint == ""
    peak = account(answer, "peak", rank=1)
    assert peak.unexplained_bytes == UNEXPLAINED["peak"]
    assert peak.total.value == sum(peak_parts(2, 4, False, 1).values()) + UNEXPLAINED["peak"]
    assert peak.held_by == f"backward of step 4, in {PEAK_MODULE}"
    assert part(peak, "parameters").details == (("frozen", 4.0 * FROZEN), ("trainable", 4.0 * TRAINED))
    assert part(peak, "activations").details == (("forward", 41.0 * MIB),)
    assert answer.sentence.endswith(
        "Tensors peak at 51.3 MiB in backward of step 4, in llm.layers.1 (rank 1): activations 41.0 MiB, "
        "parameters 4.71 MiB, temporary 3.00 MiB; 0.28 % unexplained."
    )


@pytest.mark.parametrize("options", [{}, {"gpus": 2}, {"offload": True}, {"gpus": 2, "offload": True}, {"ranks": 3}])
def test_standing_parts_equal_the_formulas(tmp_path: Path, options: dict[str, Any]) -> None:
    answer = memory(tmp_path, **options)
    looked = 0
    for found in answer.accounts:
        for one in found.parts:
            if one.formula_bytes and one.part != "buffers":
                assert one.bytes == pytest.approx(one.formula_bytes, rel=1e-4), (found.at, found.space, one.part)
                looked += 1
    assert looked >= 8 * len(answer.ranks) - 2


def test_offload_is_accounted_where_it_is(tmp_path: Path) -> None:
    answer = memory(tmp_path, gpus=2, offload=True)
    on_host, on_device = account(answer, "standing"), account(answer, "standing", space="device")
    assert {p.part for p in on_host.parts} == {
        "gradients", "optimizer_states", "master_weights", "buffers", "unexplained",
    }  # fmt: skip
    assert "master_weights" not in {p.part for p in on_device.parts}
    assert part(on_device, "fragmentation").bytes == 2 * MIB
    assert answer.sentence.split(". ")[1].startswith("Tensors on the device peak at")


def test_the_largest_tensors_are_those_of_the_highest_rank(tmp_path: Path) -> None:
    rows = memory(tmp_path, ranks=3).allocations
    assert {row.rank for row in rows} == {2}
    assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)
    assert rows[0].stack == ("train.py:41 <module>", "train.py:30 main", "model.py:88 forward")
    assert rows[-1].stack == ()


def test_the_curve_counts_from_the_step_s_begin_and_has_its_phases_behind_it(tmp_path: Path) -> None:
    answer = memory(tmp_path)
    curve = answer.step_curves[1]
    assert (curve.rank, curve.unit, curve.x_ns[0]) == (1, "bytes", 0)
    assert max(value or 0 for value in curve.y) == sum(peak_parts(2, 4, False, 1).values())
    phases = [phase for phase in answer.step_phases if phase.rank == 1]
    assert [phase.phase for phase in phases] == [
        "data", "forward", "backward", "data", "forward", "backward", "optimizer",
    ]  # fmt: skip
    ends = [0, *(phase.end_ns for phase in phases)]
    assert all(begin.begin_ns >= end for begin, end in zip(phases, ends, strict=False))
    assert phases[-1].end_ns <= curve.x_ns[-1]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"account": False}, "No account was recorded"),
        ({"steps": 3}, "The run ended before its profile step 4 did: run longer, or set"),
        ({"profile_step": None}, "`profile.profile_step` is null"),
        ({"bare": True, "account": False}, "No account was recorded"),
    ],
)
def test_without_an_account_it_is_said_why(tmp_path: Path, options: dict[str, Any], hint: str) -> None:
    answer = memory(tmp_path, **options)
    assert answer.accounts == ()
    assert answer.account_hint.startswith(hint)
    assert answer.sentence.endswith("stand between steps.")
    assert answer.zero  # the formulas need no account


def test_a_light_run_has_no_account(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", account=False)
    file = run / layout.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["workload"]["profile"]["level"] = "light"
    file.write_text(json.dumps(manifest))
    hint = analyse(read_run(run)).memory.account_hint
    assert hint == "`profile.level: light` has no profile step; set it to `default`."


def test_an_account_that_failed_says_so(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", account=False)
    with_fault = {"faults": [(BOOT_NS, "memory account", "begin", "KeyError: 'x'", 1)]}
    write_stream(layout.rank_stream(run, 2), rank_header(2, 3), with_fault)
    assert analyse(read_run(run)).memory.account_hint == "The memory account failed: KeyError: 'x'"


def test_hostile_names_are_cut_and_change_no_sum(tmp_path: Path) -> None:
    answer = memory(tmp_path, hostile=True)
    for found in answer.accounts:
        assert sum(p.bytes for p in found.parts) == found.total.value
        assert all(len(p.part) <= 300 and len(p.method) <= 700 for p in found.parts)
    assert part(account(answer, "peak"), HOSTILE).source == "modelled"
    assert {a.at for a in answer.accounts} == {"standing", "peak"}


# -- formulas ---------------------------------------------------------------------------------------------------------


def states_of(path: Path, **options: Any) -> ModelStates:
    states = known_states(prepare(read_run(build_run(path / "run", **options)))).states
    assert states is not None
    return states


def test_the_formulas_input_is_the_run_s(tmp_path: Path) -> None:
    states = states_of(tmp_path, ranks=4, gpus=4, offload=True)
    assert (states.trainable, states.frozen, states.stage, states.ranks) == (TRAINED, FROZEN, 2, 4)
    assert (states.parameter_bytes, states.offload_optimizer, states.accumulates) == (2, True, True)
    assert states_of(tmp_path / "cpu").parameter_bytes == 4


def test_every_stage_is_there_and_this_run_is_marked_once(tmp_path: Path) -> None:
    for number, options in enumerate(({}, {"offload": True})):
        rows = memory(tmp_path / str(number), **options).zero
        assert [(row.stage, row.offload_optimizer, row.offload_param) for row in rows] == [
            (0, False, False), (1, False, False), (2, False, False), (3, False, False),
            (1, True, False), (2, True, False), (3, True, False), (3, True, True),
        ]  # fmt: skip
        (own,) = (row for row in rows if row.is_this_run)
        assert (own.stage, own.offload_optimizer) == (2, bool(options))
        assert all(f"{TRAINED:,} trained parameters" in row.method for row in rows)


def test_the_table_is_the_formulas(tmp_path: Path) -> None:
    """bf16 under ZeRO-2 on 2 ranks, by hand; frozen parameters are divided in stage 3 only."""
    rows = {(r.stage, r.offload_optimizer): r for r in memory(tmp_path, gpus=2).zero if not r.offload_param}
    two = rows[2, False]
    assert two.parameters == 2 * (TRAINED + FROZEN)
    assert two.gradients == (2 + 4) * TRAINED / 2
    assert two.master_weights == 4 * TRAINED / 2
    assert two.optimizer_states == 8 * TRAINED / 2
    assert two.device_total == two.parameters + two.gradients + two.master_weights + two.optimizer_states
    assert two.host_total == 0
    away = rows[2, True]
    assert away.device_total == 2 * (TRAINED + FROZEN)
    # fp32 gradient, accumulated gradient, 16-bit copy, master weights, two states
    assert away.host_total == pytest.approx((4 + 2 + 2 + 4 + 8) * TRAINED / 2)
    params = TRAINED + FROZEN
    assert two.deepspeed_device == estimate_zero2(params, ranks_per_node=2).device
    assert rows[3, False].deepspeed_device == estimate_zero3(params, 400_000, ranks_per_node=2).device
    assert (rows[0, False].deepspeed_device, rows[1, True].deepspeed_host) == (None, None)


def test_an_unknown_or_double_model_has_no_formula(tmp_path: Path) -> None:
    view = prepare(read_run(build_run(tmp_path / "run")))
    for facts, reason in (
        ({"model.params": 10}, "did not record"),
        ({"model.params": 10, "model.trainable_params": 11}, "did not record"),
        ({"model.params": True, "model.trainable_params": True}, "did not record"),
        ({**view.facts[0], "model1.params": 5}, "several"),
        ({**view.facts[0], "deepspeed.engine1.zero_stage": 2}, "several"),
        ({**view.facts[0], "framework": "mpi"}, "what spreads"),
    ):
        known = known_states(replace(view, facts={0: facts}))
        assert known.states is None
        assert reason in known.reason
    # a loss is a root too, without parameters
    assert known_states(replace(view, facts={0: {**view.facts[0], "model1.params": 0}})).states is not None


@pytest.mark.parametrize(
    ("name", "words"), [("ddp", "DDP holds"), ("fsdp2", "FSDP2 holds"), ("plain", "one copy a rank")]
)
def test_other_frameworks_are_told_by_their_own_formula(tmp_path: Path, name: str, words: str) -> None:
    answer = memory(tmp_path, framework=name)
    assert not any(row.is_this_run for row in answer.zero)
    assert words in answer.zero_sentence
    standing = {p.part: p.formula_bytes for p in account(answer, "standing").parts}
    if name == "fsdp2":
        peak = {p.part: p.formula_bytes for p in account(answer, "peak").parts}
        assert peak["parameters"] is None
        assert standing["parameters"] == 4 * (TRAINED + FROZEN) / 2
    else:
        # before the loop lets go of them: a step ends with the update
        assert standing["gradients"] == 4 * TRAINED
        assert standing["parameters"] == 4 * (TRAINED + FROZEN)


def test_what_stage_3_has_gathered_at_the_peak_has_no_formula() -> None:
    states = ModelStates(trainable=1000, stage=3, ranks=2, persistent=10)
    assert formula_bytes(states, "standing", "host", is_cpu=True)["parameters"] == 2 * (500 + 10)
    assert "parameters" not in formula_bytes(states, "backward", "host", is_cpu=True)
    whole = replace(states, persistent=1000)
    assert formula_bytes(whole, "backward", "host", is_cpu=True)["parameters"] == 2 * (500 + 1000)


def test_offload_in_stage_0_is_stage_0() -> None:
    run = ModelStates(trainable=1, stage=0, offload_optimizer=True)
    assert is_this_run(run, ModelStates(trainable=1, stage=0))
    assert not is_this_run(replace(run, stage=1), ModelStates(trainable=1, stage=1))


def test_rows_of_nothing_are_no_rows(tmp_path: Path) -> None:
    view = prepare(read_run(build_run(tmp_path / "run")))
    rows = zero_rows(view, ModelStates(trainable=1, ranks=1_000_000))
    assert all(row.device_total >= 0 for row in rows)


def test_analysing_changes_no_table(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", gpus=2, offload=True))
    before = {name: frame.clone() for name, frame in run.tables.items()}
    analyse(run)
    assert all(run.tables[name].equals(frame) for name, frame in before.items())
