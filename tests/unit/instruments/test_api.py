import agprof
from agprof.instruments import api


def test_without_a_recorder_every_call_does_nothing():
    assert api._sink is None
    with agprof.range("x") as value:
        assert value is None
    agprof.step(tokens=1, samples=2)
    agprof.mark("here")

    @agprof.annotate("name")
    def add(a, b=1):
        """Doc."""
        return a + b

    assert add(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Doc.")
    assert api._sink is None


def test_calls_reach_the_recorder(rig):
    api.attach(rig.recorder)
    phase = rig.recorder.open("phase", "forward")
    with agprof.range("outer"), agprof.range("inner"):
        agprof.mark("here")
    rig.recorder.close(phase)

    @agprof.annotate("call")
    def call():
        agprof.step(tokens=10, unpadded_tokens=8)
        agprof.step(tokens=5, samples=1, unpadded_tokens=5)

    call()
    rig.recorder.end_step()
    tables = rig.finish()
    assert [(row.category, row.name, row.depth) for row in tables["spans"]] == [
        ("range", "inner", 2),
        ("range", "outer", 1),
        ("phase", "forward", 0),
        ("range", "call", 0),
    ]
    assert [(row.source, row.name) for row in tables["marks"]] == [("user", "here")]
    assert (tables["steps"][0].tokens, tables["steps"][0].samples) == (15, 1)
    assert tables["steps"][0].unpadded_tokens == 13


def test_exceptions_pass_and_close_their_range(rig):
    api.attach(rig.recorder)
    try:
        with agprof.range("x"):
            raise ValueError
    except ValueError:
        pass
    assert [row.name for row in rig.finish()["spans"]] == ["x"]


def test_one_range_object_nested_in_itself(rig):
    api.attach(rig.recorder)
    one = agprof.range("x")
    with one, one:
        pass
    assert [row.depth for row in rig.finish()["spans"]] == [1, 0]


def test_a_range_outlives_detaching(rig):
    api.attach(rig.recorder)
    with agprof.range("x"):
        api.detach()
    assert [row.name for row in rig.finish()["spans"]] == ["x"]


def test_nothing_that_is_passed_in_raises(rig):
    class Odd:
        def __str__(self):
            raise RuntimeError("no text")

        __int__ = __str__

    api.attach(rig.recorder)
    with agprof.range(Odd()), agprof.range(7):
        agprof.mark(Odd())
        agprof.step(tokens=Odd(), samples="many")
    tables = rig.finish()
    assert [row.name for row in tables["spans"]] == ["7"]
    assert {(row.instrument, row.where) for row in tables["faults"]} == {
        ("api", "range"), ("api", "mark"), ("api", "step"),
    }  # fmt: skip


def test_the_public_names():
    assert agprof.__all__ == ["__version__", "annotate", "mark", "range", "step"]
