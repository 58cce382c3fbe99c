"""Findings on what a job does in vain: each fires on its case alone, and is silent where the case is mended."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from agprof.analysis.run import analyse
from agprof.model.answers import Finding, RunAnswers
from agprof.model.tables import BY_NAME
from agprof.store.reader import Run, read_run, schema
from synthetic import MS, build_run

CALM: dict[str, Any] = {"collectives": 2, "transfer_ms": 1.0}


def frame(table: str, *rows: Mapping[str, Any]) -> pl.DataFrame:
    """Rows of rank 0; columns that are not given are None."""
    columns = [column.name for column in BY_NAME[table].columns]
    filled = [{"rank": 0, **dict.fromkeys(columns), **row} for row in rows]
    return pl.DataFrame(filled, schema=schema(BY_NAME[table]))


def a_run(path: Path, facts: Mapping[str, Any] | None = None, tables: Mapping[str, pl.DataFrame] | None = None,
          **options: Any) -> Run:  # fmt: skip
    run = read_run(build_run(path / "run", **{**CALM, **options}))
    more = frame("facts", *({"time_ns": 10**18, "key": k, "value": json.dumps(v)} for k, v in (facts or {}).items()))
    return replace(run, tables={**run.tables, **(tables or {}), "facts": pl.concat([run.tables["facts"], more])})


def found(run: Run) -> dict[str, Finding]:
    answers: RunAnswers = analyse(run)
    return {finding.key: finding for finding in answers.findings}


# -- frozen modules ----------------------------------------------------------------------------------------------------


def modules(**shares: float) -> pl.DataFrame:
    """A model of 100 FLOPs a step with these modules."""
    rows = [{"path": "", "parent": None, "forward_flops": 60.0, "backward_flops": 30.0, "recomputed_flops": 10.0}]
    rows += [{"path": path.replace("_", "."), "parent": "", "forward_flops": flops} for path, flops in shares.items()]
    common = {"step": 4, "root": 0, "depth": 0, "type": "Tower", "order": 0, "params": 1, "trainable_params": 0}
    return frame("modules", *({**common, **row} for row in rows))


def repeats(**changes: Any) -> dict[str, Any]:
    usual = {"first_step": 4, "last_step": 8, "root": 0, "path": "tower.text", "calls": 20, "repeated_calls": 0,
             "repeated_at_once": 0, "repeated_items_share": 0.0, "forward_ns_per_call": 3 * MS,
             "unverified_calls": 0}  # fmt: skip
    return {**usual, **changes}


def looked_at(path: Path, *rows: Mapping[str, Any], **shares: float) -> dict[str, Finding]:
    tables = {"repeats": frame("repeats", *rows), "modules": modules(**shares)}
    return found(a_run(path, tables=tables))


def test_repeated_inputs_name_the_module_its_share_and_what_it_costs(tmp_path: Path) -> None:
    findings = looked_at(tmp_path, repeats(repeated_calls=15), tower_text=28.0)
    assert set(findings) == {"repeated-inputs"}
    finding = findings["repeated-inputs"]
    assert finding.title == (
        "The frozen tower.text gets inputs it has seen before in 75 % of its calls; it is 28 % of the step's FLOPs"
    )
    assert "15 of its 20 calls in 5 steps" in finding.evidence
    assert finding.saving_ns_per_step is not None and finding.saving_ns_per_step.source == "measured"
    # 4 calls a step of 3 ms, three quarters of them repeated
    assert finding.saving_ns_per_step.value == pytest.approx(0.75 * 4 * 3 * MS)


def test_without_times_the_saving_is_the_share_of_the_flops(tmp_path: Path) -> None:
    row = repeats(repeated_calls=10, forward_ns_per_call=None)
    run = a_run(tmp_path, tables={"repeats": frame("repeats", row), "modules": modules(tower_text=28.0)})
    finding = found(run)["repeated-inputs"]
    mean = sum(rank.step_ns for rank in analyse(run).time.ranks) / 2
    assert finding.confidence == "modelled"
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == pytest.approx(0.5 * 0.28 * mean, rel=0.01)


def test_calls_repeated_at_once_are_a_finding_of_their_own(tmp_path: Path) -> None:
    row = repeats(repeated_calls=5, repeated_at_once=5)
    assert set(looked_at(tmp_path, row, tower_text=28.0)) == {"repeated-at-once"}


def test_copied_items_name_their_share(tmp_path: Path) -> None:
    findings = looked_at(tmp_path, repeats(repeated_items_share=0.5), tower_text=28.0)
    assert set(findings) == {"copied-items"}
    assert findings["copied-items"].title.startswith("50 % of the items given to the frozen tower.text are copies")


@pytest.mark.parametrize(
    ("row", "flops"),
    [
        (repeats(), 28.0),
        (repeats(repeated_calls=20), 0.0),  # counts no FLOPs
        (repeats(repeated_calls=1), 80.0),  # a data set's second epoch
        (repeats(repeated_calls=2), 5.0),  # 10 % of 5 % is not worth a word
        (repeats(unverified_calls=20), 28.0),
    ],
)
def test_no_repetition_or_none_that_costs_is_no_finding(row: dict[str, Any], flops: float, tmp_path: Path) -> None:
    assert looked_at(tmp_path, row, tower_text=flops) == {}


def test_repetition_without_counted_flops_is_no_finding(tmp_path: Path) -> None:
    empty = {"repeats": frame("repeats", repeats(repeated_calls=20)), "modules": frame("modules")}
    assert found(a_run(tmp_path, tables=empty)) == {}


def test_hostile_paths_stay_text(tmp_path: Path) -> None:
    path = "</script><b>" * 1000
    tables = {
        "repeats": frame("repeats", repeats(path=path, repeated_calls=20)),
        "modules": pl.concat(
            [modules(), modules(x=28.0).filter(pl.col("path") == "x").with_columns(path=pl.lit(path))]
        ),
    }
    title = found(a_run(tmp_path, tables=tables))["repeated-inputs"].title
    assert len(title) < 400


# -- read-backs --------------------------------------------------------------------------------------------------------


def reads(*rows: tuple[str, str, int, str | None]) -> dict[str, pl.DataFrame]:
    return {
        "readbacks": frame(
            "readbacks",
            *({"step": 4, "kind": k, "place": p, "calls": n, "package": package} for k, p, n, package in rows),
        )
    }


def test_readbacks_are_named_by_place_with_their_count_per_micro_step(tmp_path: Path) -> None:
    tables = reads(("item", "job/train.py:7 loop", 8, None), ("copy", "job/loss.py:3 focal", 4, None),
                   ("item", "lib/a.py:1 f", 6, "lib"))  # fmt: skip
    finding = found(a_run(tmp_path, tables=tables))["readbacks"]
    # two micro-steps a step, and what an installed package reads is not the job's
    assert "6 times per micro-step, which a GPU would be waited for" in finding.title
    assert "job/train.py:7 loop (8 x one value), job/loss.py:3 focal (4 x a tensor)" in finding.evidence
    assert "lib 6" in finding.evidence
    assert finding.confidence == "rule of thumb" and finding.saving_ns_per_step is None


def test_readbacks_on_a_gpu_are_measured(tmp_path: Path) -> None:
    run = a_run(tmp_path, {"device.type": "cuda"}, reads(("item", "job/train.py:7 loop", 8, None)))
    finding = found(run)["readbacks"]
    assert finding.confidence == "measured"
    assert "would be" not in finding.title


@pytest.mark.parametrize("rows", [(), (("item", "a.py:1 f", 4, None),), (("item", "lib/a.py:1 f", 90, "lib"),)])
def test_few_readbacks_or_those_of_others_are_no_finding(rows: Any, tmp_path: Path) -> None:
    assert found(a_run(tmp_path, tables=reads(*rows))) == {}


# -- output ------------------------------------------------------------------------------------------------------------


def test_much_output_says_how_much_and_of_what_kind(tmp_path: Path) -> None:
    facts = {"output.steps": 10, "output.lines": 60, "output.bytes": 10240, "output.example": "texts: a brick"}
    finding = found(a_run(tmp_path, facts))["much-output"]
    assert finding.title == "A rank prints 6 lines a step"
    assert "Rank 0 writes 1.00 KiB a step" in finding.evidence and "texts: a brick" in finding.evidence


@pytest.mark.parametrize(
    "facts", [{}, {"output.steps": 10, "output.lines": 20, "output.bytes": 999}, {"output.steps": "x"}]
)
def test_a_line_or_two_a_step_is_no_finding(facts: dict[str, Any], tmp_path: Path) -> None:
    assert found(a_run(tmp_path, facts)) == {}


# -- the DeepSpeed JSON ------------------------------------------------------------------------------------------------


def with_config(
    path: Path, config: Mapping[str, Any], facts: Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Finding]:
    return found(a_run(path, {"deepspeed.config": config, **(facts or {})}, **options))


BLOCK = {"activation_checkpointing": {"partition_activations": True, "cpu_checkpointing": True, "profile": False}}


def test_a_checkpointing_block_that_nobody_asks_for_is_named(tmp_path: Path) -> None:
    findings = with_config(tmp_path, BLOCK, {"deepspeed.checkpoint_calls": 0})
    assert set(findings) == {"inert-checkpointing"}
    assert "It sets cpu_checkpointing, partition_activations; " in findings["inert-checkpointing"].evidence


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (BLOCK, {"deepspeed.checkpoint_calls": 12}),
        (BLOCK, {}),  # not counted: nothing is said
        ({}, {"deepspeed.checkpoint_calls": 0}),
        ({"activation_checkpointing": {"partition_activations": False}}, {"deepspeed.checkpoint_calls": 0}),
        ({"activation_checkpointing": []}, {"deepspeed.checkpoint_calls": 0}),
    ],
)
def test_a_block_that_works_or_is_not_there_is_no_finding(config: Any, facts: Any, tmp_path: Path) -> None:
    assert with_config(tmp_path, config, facts) == {}


def rates(optimizer: Any, peak: Any, kind: str = "WarmupDecayLR", key: str = "warmup_max_lr") -> dict[str, Any]:
    return {"optimizer": {"params": {"lr": optimizer}}, "scheduler": {"type": kind, "params": {key: peak}}}


def test_an_overridden_learning_rate_is_named_with_what_the_engine_had(tmp_path: Path) -> None:
    finding = with_config(tmp_path, rates(1e-4, 1e-3), {"deepspeed.lr": 6.2e-4})["overridden-learning-rate"]
    assert finding.title == "optimizer.lr 0.0001 has no effect: the scheduler goes up to 0.001"
    assert "The highest rate of the engine in this run was 0.00062." in finding.evidence
    assert finding.confidence == "measured"
    assert "scheduler.params.warmup_max_lr" in finding.change


def test_a_rate_that_the_run_never_passed_is_known_by_the_configuration_only(tmp_path: Path) -> None:
    finding = with_config(tmp_path, rates(1e-4, 1e-3), {"deepspeed.lr": 2e-5})["overridden-learning-rate"]
    assert finding.confidence == "rule of thumb"


@pytest.mark.parametrize(
    "config",
    [
        rates(1e-3, 1e-3),
        rates(1e-4, 1e-3, kind="WarmupCosineLR"),  # scales the optimizer's
        rates("auto", 1e-3),
        rates(1e-4, None),
        {"optimizer": {"params": {"lr": 1e-4}}},
        {"optimizer": [], "scheduler": "WarmupLR"},
    ],
)
def test_rates_that_agree_or_are_not_there_are_no_finding(config: Any, tmp_path: Path) -> None:
    assert with_config(tmp_path, config) == {}


def buckets(path: Path, size: int, trained: int, **options: Any) -> dict[str, Finding]:
    config = {"zero_optimization": {"reduce_bucket_size": size, "allgather_bucket_size": size},
              "gradient_accumulation_steps": 1}  # fmt: skip
    return with_config(path, config, {"model.trainable_params": trained}, **options)


def test_buckets_above_64_kib_that_are_still_tiny_are_named(tmp_path: Path) -> None:
    # 12 reductions of 100 kB: DeepSpeed's 50,000 elements in half precision
    findings = buckets(tmp_path, 50_000, 600_000, collectives=12, collective_bytes=100_000, transfer_ms=0.4)
    finding = findings["tiny-buckets"]
    assert finding.title == "Gradients go out in 12 pieces a step: reduce_bucket_size is 50,000 elements"
    assert "12 reductions where 1 would do" in finding.evidence
    assert "to 600,000 or more" in finding.change
    assert "small-messages" not in findings


def test_messages_that_are_small_already_are_named_once(tmp_path: Path) -> None:
    findings = buckets(tmp_path, 2_000, 600_000, collectives=200, collective_bytes=8000, transfer_ms=0.3)
    assert "small-messages" in findings and "tiny-buckets" not in findings


@pytest.mark.parametrize(
    ("size", "trained", "bytes_"),
    [(600_000, 600_000, 100_000), (5_000_000, 90_000_000, 10_000_000), (50_000, 40_000, 100_000)],
)
def test_buckets_that_hold_all_or_are_large_are_no_finding(
    size: int, trained: int, bytes_: int, tmp_path: Path
) -> None:
    findings = buckets(tmp_path, size, trained, collectives=12, collective_bytes=bytes_, transfer_ms=0.4)
    assert "tiny-buckets" not in findings


# -- two kinds of steps ------------------------------------------------------------------------------------------------


def with_range(run: Run, name: str, steps: list[int], ms: int) -> Run:
    """A range of the job's in these steps of rank 0."""
    begins = dict(run.tables["steps"].filter(pl.col("rank") == 0).select("step", "start_ns").iter_rows())
    rows = [
        {"span": 10**6 + step, "step": step, "micro_step": 0, "category": "range", "name": name,
         "start_ns": begins[step] + MS, "end_ns": begins[step] + (1 + ms) * MS, "thread": 1, "depth": 1}
        for step in steps
    ]  # fmt: skip
    return replace(run, tables={**run.tables, "spans": pl.concat([run.tables["spans"], frame("spans", *rows)])})


def test_the_range_that_only_slow_steps_have_is_named(tmp_path: Path) -> None:
    run = a_run(tmp_path, bimodal=True, steps=30)
    own = run.tables["steps"].filter((pl.col("rank") == 0) & pl.col("step").is_in([7, 8])).sort("step")
    seven, eight = (own["end_ns"] - own["start_ns"]).to_list()
    slow = [step for step in range(30) if step % 2 == (seven > eight)]
    finding = found(with_range(run, "memory_bank", slow, 30))["bimodal-steps"]
    slower, faster = re.fullmatch(r".*: ([\d.]+) ms with `memory_bank`, ([\d.]+) ms without", finding.title).groups()  # type: ignore[union-attr]
    assert float(slower) > float(faster)
    assert "only they have the range `memory_bank`: 30.0 ms of them" in finding.evidence
    assert "`memory_bank`" in finding.change


def test_a_range_in_some_steps_that_makes_none_longer_is_no_kind(tmp_path: Path) -> None:
    run = with_range(a_run(tmp_path, steps=30), "cheap", list(range(0, 30, 2)), 30)
    assert "bimodal-steps" not in found(run)


@pytest.mark.parametrize("steps", [list(range(30)), [7], []])
def test_a_range_in_all_steps_or_in_hardly_one_is_no_kind(steps: list[int], tmp_path: Path) -> None:
    run = with_range(a_run(tmp_path, steps=30), "usual", steps, 30)
    assert "bimodal-steps" not in found(run)


def test_without_a_range_the_phase_is_named(tmp_path: Path) -> None:
    finding = found(a_run(tmp_path, bimodal=True, steps=30))["bimodal-steps"]
    assert "in the forward pass" in finding.evidence


# -- frozen parameters -------------------------------------------------------------------------------------------------


def held(frozen_bytes: int, total: int, space: str = "device", at: str = "standing") -> dict[str, pl.DataFrame]:
    common = {"step": 4, "at": at, "space": space, "detail": "", "source": "measured", "method": ""}
    parts = {"part": "parameters", "detail": "frozen", "bytes": frozen_bytes, "elements": 1_000_000}
    return {"memory_parts": frame("memory_parts", {**common, **parts}, {**common, "part": "total", "bytes": total})}


def test_frozen_parameters_in_float32_on_a_gpu_are_named(tmp_path: Path) -> None:
    findings = found(a_run(tmp_path, tables=held(4_000_000, 10_000_000)))
    assert set(findings) == {"frozen-in-fp32"}
    assert "1,000,000 parameters of rank 0" in findings["frozen-in-fp32"].evidence
    assert "40 %" in findings["frozen-in-fp32"].evidence


@pytest.mark.parametrize(
    "tables",
    [held(2_000_000, 10_000_000), held(4_000_000, 100_000_000), held(4_000_000, 10_000_000, "host"),
     held(4_000_000, 10_000_000, at="peak")],
)  # fmt: skip
def test_half_precision_little_of_all_or_host_memory_is_no_finding(tables: Any, tmp_path: Path) -> None:
    assert found(a_run(tmp_path, tables=tables)) == {}
