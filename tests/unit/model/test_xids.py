import pytest

from agprof.model.xids import KINDS, XIDS, event_in_words, xid_of


@pytest.mark.parametrize(
    ("code", "concern", "words"),
    [
        (13, "job", "beyond the end of an array"),
        (31, "job", "page fault"),
        (43, "job", "healthy"),
        (45, "note", "killed"),
        (48, "gpu", "Double-bit"),
        (63, "note", "set aside"),
        (64, "gpu", "failed"),
        (74, "gpu", "NVLink"),
        (79, "gpu", "fallen off the bus"),
        (94, "job", "contained"),
        (95, "gpu", "not contained"),
        (119, "gpu", "GSP"),
        (120, "gpu", "GSP"),
        (149, "gpu", "NVLink"),
    ],
)
def test_meanings_are_those_of_the_catalog(code: int, concern: str, words: str) -> None:
    assert xid_of(code).concern == concern
    assert words in xid_of(code).meaning


def test_every_one_says_what_it_is_and_what_to_do() -> None:
    common = {13, 31, 32, 38, 43, 45, 48, 56, 57, 58, 61, 62, 63, 64, 68, 69, 74, 79, 92, 94, 95, 119, 120}
    assert common <= set(XIDS)
    for xid in XIDS.values():
        assert xid.meaning.endswith(".")
        assert xid.action.endswith(".")
        assert xid.sentence == f"{xid.meaning} {xid.action}"


@pytest.mark.parametrize("code", [0, 7, 999, -1, 2**62])
def test_an_unknown_number_is_said_to_be_unknown(code: int) -> None:
    assert f"XID {code} is not in agprof's table" in event_in_words("xid", code)
    assert "catalog" in event_in_words("xid", code)


def test_other_kinds_have_words_and_unknown_ones_are_quoted_short() -> None:
    assert all(event_in_words(kind, None) == words for kind, words in KINDS.items())
    assert "without a number" in event_in_words("xid", None)
    text = event_in_words("<script>" + "x" * 1_000_000, None)
    assert len(text) < 200
