"""What the manifest says of a node setup stands in the configuration, and is what a comparison is about."""

from types import SimpleNamespace
from typing import Any

from agprof.analysis.compare_configuration import weigh
from agprof.analysis.identity import configuration


def rows(manifest: dict[str, Any]) -> dict[str, str]:
    view: Any = SimpleNamespace(run=SimpleNamespace(manifest=manifest), facts={})
    return dict(configuration(view))


def test_setup_link_and_nodes_are_rows() -> None:
    found = rows(
        {
            "setup": "two-nodes",
            "link": "emulated link, 1gbit",
            "setup_section": {"ranks_per_node": 1, "emulate": {"rate": "1gbit"}, "env": {"A": "1"}},
            "node_list": [
                {"number": 0, "host": "node0", "address": "10.77.0.1", "interface": "agpeth"},
                {"number": 1, "host": "node1", "address": "10.77.0.2", "interface": None},
            ],
        }
    )
    assert found == {
        "setup": "two-nodes",
        "link": "emulated link, 1gbit",
        "setup.ranks_per_node": "1",
        "setup.emulate.rate": "1gbit",
        "setup.env.A": "1",
        "setup.node 0": "node0, 10.77.0.1, agpeth",
        "setup.node 1": "node1, 10.77.0.2",
    }
    assert {weigh(key)[0] for key in found} == {"expected"}


def test_a_run_of_no_setup_has_none() -> None:
    assert rows({"launcher": "torchrun", "node_list": []}) == {"launcher": "torchrun"}


def test_a_manifest_of_another_kind_does_no_harm() -> None:
    assert rows({"setup": {"name": "x"}, "link": 3, "setup_section": [], "node_list": {"a": 1}}) == {}
    assert rows({"node_list": ["<script>", {"number": 1, "host": "<script>"}]}) == {"setup.node 1": "<script>"}
