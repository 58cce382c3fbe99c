"""The sampler's GPU parts on the fake NVML."""

from pathlib import Path

import pytest

from busy_gpu import busy, rows_of, run_session
from fakes.nvml.build import FakeNvml
from nvml_rig import RigMaker, Row, rig_of


@pytest.fixture
def rig(fake_nvml: FakeNvml, tmp_path: Path) -> RigMaker:
    """`with rig(scenario) as found`: the sampler's parts on that scenario."""
    return lambda scenario, **options: rig_of(fake_nvml, scenario, tmp_path, **options)


@pytest.fixture
def healthy(rig: RigMaker) -> dict[str, list[Row]]:
    """What a session on a busy GPU writes when nothing goes wrong."""
    with rig(busy()) as found:
        run_session(found)
        return rows_of(found)
