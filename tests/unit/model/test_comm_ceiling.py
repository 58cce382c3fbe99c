"""What was measured of links, read back: hostile values are refused with the rule that they break."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.alpha_beta import fit_points
from agprof.model.comm_ceiling import COMM_CEILING_VERSION, CommCeiling, CommCurve, CommPoint, read_comm_ceiling


def curve(op: str = "all_reduce", n: int = 2, nodes: int = 1, alpha: float = 1e5, beta: float = 1.0) -> CommCurve:
    points = tuple(
        CommPoint(
            bytes=size,
            repeats=7,
            median_ns=round(alpha + beta * size),
            low_ns=1,
            high_ns=round(2 * alpha + beta * size),
        )
        for size in (1024, 65536, 4194304, 16777216)
    )
    return CommCurve(op=op, group_size=n, nodes=nodes, points=points, fit=fit_points(points))


def ceiling(*curves: CommCurve, **changes: Any) -> CommCeiling:
    fields: dict[str, Any] = {
        "version": COMM_CEILING_VERSION,
        "backend": "gloo",
        "device_type": "cpu",
        "device_name": "some CPU",
        "ranks": 2,
        "nodes": 1,
        "setup": None,
        "link": "loopback",
        "measured_realtime_ns": 1,
        "torch_version": "2.13.0",
        "curves": curves or (curve(),),
    }
    return CommCeiling(**(fields | changes))


def test_json_and_back_is_the_same() -> None:
    for each in (
        ceiling(),
        ceiling(
            curve("broadcast"), curve("all_to_all", n=4), setup="two", rate_bits_per_s=10**9, delay_ns=0, quick=True
        ),
        ceiling(CommCurve(op="all_gather", group_size=2, nodes=1, points=(), fit=None)),
    ):
        assert read_comm_ceiling(json.loads(json.dumps(each.to_dict()))) == each


POINT = {"bytes": 8, "repeats": 1, "median_ns": 5, "low_ns": 5, "high_ns": 5}
FIT = {
    "alpha_ns": 1.0, "alpha_error_ns": 0.0, "beta_ns_per_byte": 1.0, "beta_error_ns_per_byte": 0.0,
    "relative_rms": 0.0, "worst": 0.0,
}  # fmt: skip


def _curve(**changes: Any) -> dict[str, Any]:
    return {"op": "all_reduce", "group_size": 2, "nodes": 1, "points": [POINT], "fit": FIT, **changes}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"version": 2}, "has version 2"),
        ({"backend": 7}, "no text backend"),
        ({"ranks": 1}, "whole number ranks from 2"),
        ({"ranks": True}, "whole number ranks"),
        ({"nodes": 0}, "whole number nodes"),
        ({"nodes": 10**30}, "whole number nodes"),
        ({"rate_bits_per_s": 0}, "rate_bits_per_s"),
        ({"delay_ns": -1}, "delay_ns"),
        ({"curves": {}}, "no list curves"),
        ({"curves": [_curve()] * 1000}, "no list curves of at most"),
        ({"curves": [7]}, "a curve is not an object"),
        ({"curves": [_curve(op="<script>")]}, "known are"),
        ({"curves": [_curve(group_size=1)]}, "group_size"),
        ({"curves": [_curve(points=[POINT] * 1000)]}, "no list points"),
        ({"curves": [_curve(points=[{**POINT, "bytes": 0}])]}, "whole number bytes"),
        ({"curves": [_curve(points=[{**POINT, "low_ns": 6}])]}, "not between low_ns and high_ns"),
        ({"curves": [_curve(fit=[])]}, "a fit is not an object"),
        ({"curves": [_curve(fit={**FIT, "alpha_ns": float("nan")})]}, "no finite alpha_ns"),
        ({"curves": [_curve(fit={**FIT, "worst": -1})]}, "no finite worst"),
        ({"curves": [_curve(fit={**FIT, "alpha_ns": 10**400})]}, "no finite alpha_ns"),
        ({"curves": [_curve(fit={**FIT, "alpha_ns": 0, "beta_ns_per_byte": 0})]}, "takes no time"),
    ],
)
def test_what_is_broken_is_said(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read_comm_ceiling({**ceiling().to_dict(), **change})


def test_long_names_are_cut() -> None:
    read = read_comm_ceiling({**ceiling().to_dict(), "link": "x" * 10**6})
    assert len(read.link) <= 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["version", "curves", "x"]), inner),
        max_leaves=10,
    )
)
def test_anything_is_read_or_refused(value: object) -> None:
    with pytest.raises(ValueError):
        read_comm_ceiling(value)
