"""Which rank was first, and what the job's exit code is: from three witnesses."""

import json
import signal
from pathlib import Path

import pytest

from agprof.launch.judge import Observed, SeenRank, judge, last_lines
from agprof.model.outcome import Outcome, RankFailure


def seen(rank: int, status: int | None, ended: int | None) -> SeenRank:
    return SeenRank(rank=rank, local_rank=rank, pid=100 + rank, status=status, ended_monotonic_ns=ended)


def observed(*ranks: SeenRank, launcher: int | None = 256, at: int = 1000, **more) -> Observed:
    values = {"interrupted_by": None, "interrupted_monotonic_ns": None, "guard_exit_code": 0, **more}
    return Observed(ranks=ranks, launcher_status=launcher, launcher_ended_monotonic_ns=at, **values)


def log(folder: Path, text: str) -> None:
    (folder / "launcher.log").write_text(text)


def ds(code: int) -> str:
    where = "[2026-11-21 09:58:51,952] [ERROR] [launch.py:339:sigkill_handler]"
    return f"{where} ['python', 'x'] exits with return code = {code}\n"


def test_the_earliest_end_is_the_cause(tmp_path):
    verdict = judge(observed(seen(0, 256, 20), seen(1, 9, 10)), tmp_path, launcher="torchrun")
    assert (verdict.reason, verdict.exit_code, verdict.signal) == ("killed", 137, "SIGKILL")
    assert [failure.rank for failure in verdict.failures] == [1, 0]


def test_of_two_that_ended_at_one_look_the_one_that_was_stopped_is_not_the_cause(tmp_path):
    verdict = judge(observed(seen(0, 15, 10), seen(1, 9, 10)), tmp_path, launcher="torchrun")
    assert (verdict.reason, verdict.exit_code, verdict.signal) == ("killed", 137, "SIGKILL")
    assert judge(observed(seen(0, 15, 9), seen(1, 9, 10)), tmp_path, launcher="torchrun").signal == "SIGTERM"


def test_a_rank_nobody_saw_end_is_no_failure_of_a_good_job(tmp_path):
    verdict = judge(observed(seen(0, None, 5), seen(1, 0, 6), launcher=0), tmp_path, launcher="torchrun")
    assert (verdict.reason, verdict.exit_code, verdict.failures) == ("finished", 0, ())


def test_torchrun_says_what_we_missed(tmp_path):
    rows = [{"rank": 1, "local_rank": 1, "pid": 9, "exitcode": 2, "signal": None, "time": 1}]
    (tmp_path / "failures.json").write_text(json.dumps(rows))
    verdict = judge(observed(seen(0, 15, 20)), tmp_path, launcher="torchrun")
    assert (verdict.reason, verdict.exit_code) == ("failed", 2)
    assert [(failure.rank, failure.stopped) for failure in verdict.failures] == [(1, False), (0, True)]


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '[{"rank": "x"}]'])
def test_a_broken_failures_file_is_passed_over(tmp_path, content):
    (tmp_path / "failures.json").write_text(content)
    assert judge(observed(seen(0, 256 * 4, 20)), tmp_path, launcher="torchrun").exit_code == 4


@pytest.mark.parametrize(("code", "expected"), [(-9, ("killed", 137, "SIGKILL")), (7, ("failed", 7, None))])
@pytest.mark.parametrize("ranks", [(), (seen(0, None, 5),)], ids=["unseen", "missed"])
def test_deepspeeds_log_says_what_we_missed(tmp_path, code, expected, ranks):
    log(tmp_path, "noise\n" + ds(code))
    status = (code % 256) * 256
    verdict = judge(observed(*ranks, launcher=status), tmp_path, launcher="deepspeed")
    assert (verdict.reason, verdict.exit_code, verdict.signal) == expected


def test_what_the_program_prints_is_not_taken_for_the_launchers_word(tmp_path):
    log(tmp_path, "my tool exits with return code = 55\n")
    assert judge(observed(), tmp_path, launcher="deepspeed").reason == "launch-failed"


def test_an_interrupt_is_the_cause_only_of_what_ends_after_it(tmp_path):
    ranks = (seen(0, 2, 20),)
    late = observed(*ranks, interrupted_by=signal.SIGINT, interrupted_monotonic_ns=10)
    early = observed(seen(0, 512, 5), interrupted_by=signal.SIGINT, interrupted_monotonic_ns=10)
    assert judge(late, tmp_path, launcher="torchrun").exit_code == 130
    verdict = judge(early, tmp_path, launcher="torchrun")
    assert (verdict.reason, verdict.exit_code) == ("failed", 2)


def test_last_lines_of_anything(tmp_path):
    path = tmp_path / "x"
    assert last_lines(path) == ()
    path.write_bytes(b"\xff\xfe no utf-8\nend")
    assert last_lines(path)[-1] == "end"
    path.write_text("".join(f"{n} {'x' * 90}\n" for n in range(10_000)))
    assert [int(line.split()[0]) for line in last_lines(path, 3)] == [9997, 9998, 9999]
    path.write_text("y" * 100_000)
    assert len(last_lines(path)) == 1


def test_an_outcome_survives_json():
    failure = RankFailure(
        rank=1,
        local_rank=1,
        pid=2,
        exit_code=137,
        signal="SIGKILL",
        ended_realtime_ns=5,
        stopped=False,
        last_lines=("a",),
    )
    outcome = Outcome(
        exit_code=137, reason="killed", started_realtime_ns=1, ended_realtime_ns=9, failures=(failure,), notes=("n",)
    )
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome
