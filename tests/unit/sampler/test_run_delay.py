"""The time for which threads had no CPU: of all of them, never going back."""

import threading
from pathlib import Path

from agprof.sampler.run_delay import RunDelay


def thread(tasks: Path, number: int, delay_ns: int) -> None:
    (tasks / str(number)).mkdir(exist_ok=True)
    (tasks / str(number) / "schedstat").write_text(f"123456 {delay_ns} 7\n")


def entries(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


def test_it_is_the_sum_over_all_threads_and_follows_them(tmp_path: Path) -> None:
    thread(tmp_path, 1, 100)
    thread(tmp_path, 2, 20)
    delay = RunDelay(tmp_path)
    assert delay() == 120
    thread(tmp_path, 2, 50)
    assert delay() == 150
    thread(tmp_path, 3, 1000)
    assert {delay() for _ in range(20)} == {150, 1150}


def test_where_the_kernel_does_not_say_it_is_0(tmp_path: Path) -> None:
    assert RunDelay(tmp_path / "missing")() == 0
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "schedstat").write_text("\n")
    assert RunDelay(tmp_path)() == 0


def test_threads_that_come_and_go_leave_no_descriptor_and_the_sum_never_goes_back() -> None:
    delay = RunDelay()
    before, last = entries("/proc/self/fd"), 0
    for _ in range(40):
        release = threading.Event()
        threads = [threading.Thread(target=release.wait, args=(5,)) for _ in range(3)]
        for each in threads:
            each.start()
        for _ in range(17):
            now = delay()
            assert now >= last
            last = now
        release.set()
        for each in threads:
            each.join()
    delay()
    alive = entries("/proc/self/task")
    assert entries("/proc/self/fd") <= before + alive
