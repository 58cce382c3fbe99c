"""The clocks of two emulated nodes over a link of 1 ms, of which one has a clock that is two hours ahead."""

from pathlib import Path

import pytest

from agprof.config.setups import EmulateSection
from agprof.launch.emulate import EmulatedNodes, why_not
from clock_samplers import AHEAD_S, TIME_NAMESPACE, has_time_namespaces, sampled, sampler

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"no emulated nodes here: {why_not()}")
DELAY_NS = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True])
def test_clocks_over_a_link_of_one_millisecond(tmp_path: Path, *, ahead: bool) -> None:
    if ahead and not has_time_namespaces():
        pytest.skip("no time namespaces here: kernel or permission")
    run = tmp_path / "run"
    with EmulatedNodes(EmulateSection(nodes=2, rate="1gbit", delay="1ms")) as nodes:
        address = f"{nodes.nodes[0].address}:29123"
        other = [*(TIME_NAMESPACE if ahead else ()), *sampler(run, 1, "--clock-server", address)]
        found = sampled(run, [
            nodes.command(0, sampler(run, 0, "--clock-serve", address)), nodes.command(1, other),
        ])  # fmt: skip
    node = found.nodes[1]
    assert found.state == "reconciled", found.sentence
    assert found.nodes[0].host != node.host
    assert node.offset.value is not None
    assert node.uncertainty_ns is not None
    # Half of a round trip of 2 ms is not known, and is stated.
    assert min(point.uncertainty_ns for point in node.points) >= DELAY_NS
    assert node.uncertainty_ns < 30 * DELAY_NS
    assert abs(node.offset.value + ahead * AHEAD_S * 1e9) <= node.uncertainty_ns
    assert len(node.points) >= 2
