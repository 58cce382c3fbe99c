"""Out of memory in the answers: what is known, what is likely, and what is not claimed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.oom_fit import would_fit
from agprof.analysis.run import analyse
from agprof.analysis.view import View, prepare
from agprof.model.answers import RunAnswers
from agprof.model.figure import Figure
from agprof.model.memory_answers import MemoryAccount, MemoryPart
from agprof.model.zero import ModelStates, highest, with_stage
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import BOOT_NS, MIB, MS, build_run, rank_header, row, write_stream

GIB = 2**30
DEVICE = {
    "space": "device", "type": "OutOfMemoryError", "error": "CUDA out of memory. Tried to allocate 2.50 GiB.",
    "wanted_bytes": int(2.5 * GIB), "limit_bytes": 80 * GIB, "limit": "device", "free_bytes": GIB,
    "allocated_bytes": 75 * GIB, "reserved_bytes": 76 * GIB, "step": 7, "micro_step": 1, "phase": "forward",
    "module": "lm_head", "count": 1, "uncaught": True,
}  # fmt: skip
HOST = {
    "space": "host", "type": "RuntimeError", "error": "you tried to allocate 4 bytes", "wanted_bytes": 4 * GIB,
    "limit_bytes": 8 * GIB, "limit": "cgroup", "rss_bytes": 6 * GIB, "virtual_bytes": 20 * GIB, "step": 2,
    "micro_step": 0, "phase": "backward", "module": "", "count": 1, "uncaught": True,
}  # fmt: skip


def run_with(
    path: Path, told: dict[int, list[Any]], *, outcome: dict[str, Any] | None = None, **options: Any
) -> RunAnswers:
    """A synthetic run, whose ranks wrote these facts `oom` in a later attempt's stream."""
    build_run(path, **options)
    ranks = options.get("ranks", 2)
    for rank, values in told.items():
        facts = [
            row("facts", time_ns=BOOT_NS + (1000 + 10 * n + rank) * MS, key="oom", value=json.dumps(value))
            for n, value in enumerate(values)
        ]
        write_stream(layout.rank_stream(path, rank, 1), rank_header(rank, ranks), {"facts": facts}, "exception")
    if outcome is not None:
        file = path / layout.OUTCOME
        file.write_text(json.dumps(json.loads(file.read_text()) | outcome))
    return analyse(read_run(path))


FAILED: dict[str, Any] = {"reason": "failed", "exit_code": 1}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_device_that_is_full(tmp_path: Path) -> None:
    answers = run_with(tmp_path / "run", {1: [DEVICE]}, outcome=FAILED, gpus=2)
    found = answers.memory.oom
    assert found is not None
    assert found.sentence.startswith(
        "Rank 1 ran out of device memory in forward of step 7, in `lm_head`: it asked for 2.50 GiB while its tensors "
        "held 75.0 GiB of the device's 80.0 GiB"
    )
    assert (found.rank, found.space, found.step, found.phase, found.module) == (1, "device", 7, "forward", "lm_head")
    assert (found.wanted_bytes, found.limit_bytes, found.certainty, found.caught) == (
        int(2.5 * GIB),
        80 * GIB,
        "known",
        0,
    )
    finding = answers.findings[0]
    assert finding.key == "out-of-memory"
    assert finding.title == "Rank 1 ran out of device memory in forward of step 7, in `lm_head`"
    assert finding.confidence == "measured"
    assert DEVICE["error"] in finding.evidence
    assert answers.verdict.next_step == finding.change


def test_the_first_of_several_ranks_and_how_many_more(tmp_path: Path) -> None:
    found = run_with(tmp_path / "run", {0: [DEVICE | {"step": 9}], 1: [DEVICE]}, outcome=FAILED, gpus=2).memory.oom
    assert found is not None
    assert found.rank == 0
    assert found.sentence.endswith("So did 1 other rank.")


def test_errors_that_the_training_caught(tmp_path: Path) -> None:
    caught = [HOST | {"uncaught": False, "count": n} for n in (1, 2, 3)]
    answers = run_with(tmp_path / "run", {0: caught})
    found = answers.memory.oom
    assert found is not None
    assert found.caught == 3
    assert found.sentence.endswith("The training caught such an error 3 times and went on.")
    keys = [finding.key for finding in answers.findings]
    assert "out-of-memory-caught" in keys
    assert "out-of-memory" not in keys


def test_caught_before_it_ended_the_run(tmp_path: Path) -> None:
    facts = [HOST | {"uncaught": False}, HOST | {"count": 2}]
    found = run_with(tmp_path / "run", {0: facts}, outcome=FAILED).memory.oom
    assert found is not None
    assert found.caught == 1
    assert "it asked for 4.00 GiB while it held 6.00 GiB of the 8.00 GiB that the cgroup may have" in found.sentence
    assert found.sentence.endswith("The training caught such an error once before.")


def test_an_address_space(tmp_path: Path) -> None:
    told = HOST | {"limit": "rlimit", "limit_bytes": 21 * GIB}
    found = run_with(tmp_path / "run", {0: [told]}, outcome=FAILED).memory.oom
    assert found is not None
    assert "its address space was 20.0 GiB of the 21.0 GiB that it may have (RLIMIT_AS)" in found.sentence


def test_how_the_run_ended_says_it(tmp_path: Path) -> None:
    failure = {
        "rank": 1, "local_rank": 1, "pid": 1, "exit_code": 1, "signal": None, "ended_realtime_ns": None,
        "stopped": False, "last_lines": [],
    }  # fmt: skip
    answers = run_with(tmp_path / "run", {1: [DEVICE]}, outcome=FAILED | {"failures": [failure]}, gpus=2)
    assert answers.identity.status_sentence.endswith(": exit code 1, out of device memory")
    assert [finding.key for finding in answers.findings][:2] == ["out-of-memory", "rank-ended"]


def test_a_run_that_had_enough(tmp_path: Path) -> None:
    answers = run_with(tmp_path / "run", {})
    assert answers.memory.oom is None
    assert not [finding for finding in answers.findings if finding.key.startswith("out-of-memory")]


@pytest.mark.parametrize(
    "value",
    [5, "text", [], {}, {"space": 7, "step": "x", "wanted_bytes": -1, "count": 1e9, "uncaught": "yes", "module": None},
     DEVICE | {"error": "</script><img src=x onerror=alert(1)>" * 1000, "module": "x" * 10**6}],
)  # fmt: skip
def test_facts_of_any_kind(tmp_path: Path, value: Any) -> None:
    found = run_with(tmp_path / "run", {0: [value]}, outcome=FAILED).memory.oom
    assert found is None or (len(found.error) <= 2000 and len(found.module) <= 500)


# -- the kernel --------------------------------------------------------------------------------------------------------


def memory(**values: Any) -> dict[str, Any]:
    none = {"limit_bytes": 8 * GIB, "limit": "cgroup", "cgroup_kills": None, "host_kills": None}
    return {"memory": none | values}


def test_a_counter_that_rose_is_known(tmp_path: Path) -> None:
    answers = run_with(tmp_path / "run", {}, killed=1, outcome=memory(cgroup_kills=1, host_kills=1))
    found = answers.memory.oom
    assert found is not None
    assert found.certainty == "known"
    assert found.sentence == "Rank 1 was killed by the kernel after step 6: out of memory (cgroup limit 8.00 GiB)."
    assert found.error == "the kernel's counter oom_kill of the job's cgroup rose by 1"
    assert (found.rank, found.space, found.limit_bytes, found.wanted_bytes) == (1, "host", 8 * GIB, None)
    assert "killed (SIGKILL), by the kernel, out of memory (cgroup limit 8.00 GiB)" in answers.identity.status_sentence
    assert answers.findings[0].key == "out-of-memory"
    assert answers.findings[0].confidence == "measured"


def test_the_machines_counter_makes_it_likely(tmp_path: Path) -> None:
    """Somebody was killed on this machine, and a rank ended by SIGKILL: no more is known."""
    answers = run_with(tmp_path / "run", {}, killed=1, outcome=memory(host_kills=2, limit="host", limit_bytes=16 * GIB))
    found = answers.memory.oom
    assert found is not None
    assert found.certainty == "likely"
    assert "likely by the kernel, out of memory (the machine has 16.0 GiB)" in found.sentence
    assert "probably for want of memory" in answers.identity.status_sentence
    assert answers.findings[0].confidence == "rule of thumb"


@pytest.mark.parametrize(("limit_bytes", "claimed"), [(2.7, True), (4.0, False)])
def test_memory_that_was_nearly_full_makes_it_likely(tmp_path: Path, limit_bytes: float, claimed: bool) -> None:
    """The two ranks' trees hold 2.6 GiB (1000 + 300 MiB each; 1,200 where PSS was read)."""
    outcome = memory(limit_bytes=int(limit_bytes * 1000 * MIB))
    found = run_with(tmp_path / "run", {}, killed=1, outcome=outcome).memory.oom
    assert (found is not None) == claimed
    if found is not None:
        assert found.certainty == "likely"
        assert "the ranks of a node held" in found.error


@pytest.mark.parametrize(
    "outcome",
    [
        {},
        memory(),
        memory(cgroup_kills=0, host_kills=5),  # the job's own cgroup lost nobody
        {"memory": {"cgroup_kills": "many", "host_kills": True}},
        {"memory": 5},
    ],
)
def test_sigkill_alone_is_not_claimed(tmp_path: Path, outcome: dict[str, Any]) -> None:
    answers = run_with(tmp_path / "run", {}, killed=1, outcome=outcome)
    assert answers.memory.oom is None
    assert answers.identity.status_sentence.endswith("killed (SIGKILL)")


def test_a_worker_that_was_killed(tmp_path: Path) -> None:
    found = run_with(tmp_path / "run", {}, outcome=FAILED | memory(cgroup_kills=1)).memory.oom
    assert found is not None
    assert found.rank is None
    assert "The kernel killed a process of the job's cgroup: out of memory" in found.sentence


def test_a_finished_job_is_not_touched_by_its_neighbours(tmp_path: Path) -> None:
    """Others of the cgroup, or of the machine, were killed; this job was not."""
    assert run_with(tmp_path / "run", {}, outcome=memory(cgroup_kills=3, host_kills=3)).memory.oom is None


def test_a_rank_that_agprof_stopped_was_not_killed_by_the_kernel(tmp_path: Path) -> None:
    build_run(tmp_path / "run", killed=1)
    file = tmp_path / "run" / layout.OUTCOME
    outcome = json.loads(file.read_text()) | memory(host_kills=1) | {"reason": "interrupted", "signal": "SIGINT"}
    file.write_text(json.dumps(outcome))
    assert analyse(read_run(tmp_path / "run")).memory.oom is None


# -- what would have fitted --------------------------------------------------------------------------------------------


def account(**parts: float) -> MemoryAccount:
    total = sum(parts.values())
    return MemoryAccount(
        rank=0,
        step=7,
        at="oom",
        space="device",
        total=Figure(value=total, unit="bytes", source="measured", n=1),
        parts=tuple(
            MemoryPart(
                part=name, bytes=size, share=size / total, source="measured", method="", details=(), formula_bytes=None
            )
            for name, size in parts.items()
        ),
        unexplained_bytes=0.0,
        held_by="",
    )


@pytest.fixture
def view(tmp_path: Path) -> View:
    return prepare(read_run(build_run(tmp_path / "run", gpus=2)))


def test_half_of_the_activations(view: View) -> None:
    fits = dict(would_fit(view, "device", account(activations=8.0 * GIB, inputs=2.0 * GIB), None, 6 * GIB))
    (gives,) = [text for change, text in fits.items() if "micro" in change]
    assert gives == "frees about 5.00 GiB (modelled: half of the activations and inputs): would not fit"


def test_stages_and_offload_free_what_the_formulas_say(view: View) -> None:
    states = ModelStates(trainable=10**9, ranks=8, stage=1)
    fits = dict(would_fit(view, "device", account(activations=1.0 * GIB), states, 3 * GIB))
    now = highest(states).device
    for stage in (2, 3):
        freed = now - highest(with_stage(states, stage)).device
        if freed < 1:
            assert f"zero_optimization.stage: {stage}" not in fits
            continue
        words = fits[f"zero_optimization.stage: {stage}"]
        assert words.endswith("would fit" if freed >= 3 * GIB else "would not fit")
        assert "modelled: model states over 8 ranks" in words
    offload = fits["zero_optimization.offload_optimizer.device: cpu"]
    assert "modelled: to the host" in offload
    alone = dict(would_fit(view, "device", account(activations=1.0 * GIB), replace(states, ranks=1), None))
    assert not any("stage" in change for change in alone)


def test_without_what_was_missing_nothing_is_said_of_fitting(view: View) -> None:
    fits = would_fit(view, "device", account(activations=8.0 * GIB), None, None)
    assert fits
    assert not any("fit" in gives for _change, gives in fits)


def test_what_gives_most_comes_first_and_what_gives_nothing_is_left_out(view: View) -> None:
    fits = would_fit(
        view, "device", account(activations=0.5 * GIB, parameters=90.0 * GIB), ModelStates(trainable=10**9, ranks=2), 1
    )
    sizes = [float(gives.split()[2]) for _change, gives in fits if "GiB" in gives]
    assert sizes == sorted(sizes, reverse=True)
    assert not any("micro-batch" in change for change, _ in fits), "0.25 of 90 GiB is not worth a word"


def test_without_evidence_there_is_nothing(view: View) -> None:
    assert would_fit(view, "device", None, None, GIB) == ()
