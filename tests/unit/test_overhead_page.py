"""docs/overhead.md: the sampler's section is put in place of the old one, and the rest of the page stays."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "overhead_sampler.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overhead_sampler", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_section_takes_the_place_of_the_old_one(script: ModuleType) -> None:
    heading = script.HEADING
    page = f"# What agprof costs\n\n## Process\n\nx\n\n{heading}\n\nold\nold\n\n## Public calls\n\ny\n"
    new = f"{heading}\n\nnew\n"
    assert script.with_section(page, new) == (
        f"# What agprof costs\n\n## Process\n\nx\n\n{heading}\n\nnew\n\n## Public calls\n\ny\n"
    )
    assert script.section_of(page) == f"{heading}\n\nold\nold\n"


def test_a_page_without_the_section_gets_it_at_its_end(script: ModuleType) -> None:
    new = f"{script.HEADING}\n\nnew\n"
    page = script.with_section("# What agprof costs\n\nx\n", new)
    assert page == f"# What agprof costs\n\nx\n\n{new}"
    assert script.with_section(page, new) == page
    assert script.section_of("# What agprof costs\n") == ""


def test_the_page_says_whether_the_goal_was_reached(script: ModuleType) -> None:
    def line(cpu: float, rss: float) -> object:
        return script.Line("agprof.sampler", "0.2, 1, 5 s", cpu, cpu, cpu, rss, "109 rows/s", 2, 60.0)

    assert "Reached." in script.section([line(0.0099, 39.9)], "scripts/overhead --sampler")
    for missed in (line(0.0101, 20), line(0.005, 40.1)):
        assert "Not reached." in script.section([missed], "scripts/overhead --sampler")


def test_the_cpu_clock_of_another_process_is_read(script: ModuleType) -> None:
    import os
    import time

    before, mine = script._cpu_ns(os.getpid()), time.process_time_ns()
    end = time.process_time_ns() + 20_000_000
    while time.process_time_ns() < end:
        pass
    spent = time.process_time_ns() - mine
    assert script._cpu_ns(os.getpid()) - before >= spent >= 20_000_000
