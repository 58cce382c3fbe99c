"""A hostile memory snapshot: nothing in it runs, is imported or set, and it takes neither the memory nor the time.

Each attack is first shown to work on the standard library's unpickler, where that can be shown safely.
"""

import gzip
import io
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agprof.cli.main import main
from agprof.errors import TraceError
from agprof.importers import torch_snapshot
from agprof.importers.plain_pickle import PickleRefusedError, load_plain

SNAPSHOT: dict[str, Any] = {"segments": [], "device_traces": [[]]}
MIB = 2**20


class Calls:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class SetsState:
    """Pickles into NEWOBJ and BUILD."""

    def __init__(self) -> None:
        self.a = 1


class Persistent(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return "storage" if isinstance(obj, Calls) else None


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def stored(tmp_path: Path, content: bytes, name: str = "evil.pickle") -> Path:
    file = tmp_path / name
    file.write_bytes(content)
    return file


def refused(file: Path) -> str:
    with pytest.raises(TraceError) as caught:
        torch_snapshot.load(file)
    return str(caught.value)


# -- nothing runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_a_call_is_refused_and_not_made(tmp_path: Path, protocol: int, where: str) -> None:
    evil = Calls(os.mkdir, str(tmp_path / "ran"))
    content = pickle.dumps(evil if where == "alone" else {**SNAPSHOT, "device_traces": [[evil]]}, protocol=protocol)
    words = refused(stored(tmp_path, content))
    if protocol >= 2:
        assert "evil.pickle: no readable memory snapshot: it asks for 'posix.mkdir'" in words
    else:
        assert "does not begin as a pickle of protocol 2 to 5" in words
    assert not (tmp_path / "ran").exists()
    pickle.loads(content)
    assert (tmp_path / "ran").exists(), "the attack is a real one"


MODULE = "agprof_hostile_module"


@pytest.mark.parametrize(
    "body",
    [
        b"c" + MODULE.encode() + b"\nf\n.",  # GLOBAL
        text(MODULE) + text("f") + b"\x93.",  # STACK_GLOBAL
        b"(i" + MODULE.encode() + b"\nf\n.",  # INST
        b"(c" + MODULE.encode() + b"\nf\no.",  # OBJ
    ],
)
def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    (tmp_path / f"{MODULE}.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nf = int\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = stored(tmp_path, b"\x80\x04" + body)
    assert "no readable memory snapshot" in refused(file)
    assert MODULE not in sys.modules
    assert not (tmp_path / "ran").exists()
    pickle.loads(file.read_bytes())
    assert (tmp_path / "ran").exists(), "the attack is a real one"
    del sys.modules[MODULE]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"N)R.", "REDUCE"),
        (b"N)\x81.", "NEWOBJ"),
        (b"N)}\x92.", "NEWOBJ_EX"),
        (b"}}b.", "BUILD"),
        (b"(No.", "OBJ"),
        (b"(iposix\nsystem\n.", "INST"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pstorage\n.", "outside of it"),
        (b"K\x01Q.", "outside of it"),
        (b"\x97.", "outside of it"),
        (b"\x98.", "none of a snapshot's"),  # READONLY_BUFFER
        (b"\x96" + struct.pack("<Q", 1) + b"x.", "none of a snapshot's"),  # BYTEARRAY8
        (b"\x8f(K\x01\x90.", "none of a snapshot's"),  # a set
        (b"I1\n.", "none of a snapshot's"),  # the text opcodes of protocol 0
        (b"S'x'\n.", "none of a snapshot's"),
        (b"\xff.", "none of a snapshot's"),
    ],
)
def test_opcodes_that_do_not_exist_here(tmp_path: Path, body: bytes, words: str) -> None:
    assert words in refused(stored(tmp_path, b"\x80\x04" + body))


def test_every_opcode_of_pickle_is_of_plain_values_or_refused() -> None:
    """One by one: what is taken is named here. A new opcode of pickle is refused until somebody looked at it."""
    taken = {
        "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
        "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
        "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_DICT", "SETITEM", "SETITEMS", "DICT", "EMPTY_TUPLE", "TUPLE",
        "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    }  # fmt: skip
    for opcode in pickletools.opcodes:
        try:
            load_plain(b"\x80\x05" + opcode.code.encode("latin-1"), max_memory_bytes=MIB)
        except PickleRefusedError as error:
            is_refused = any(
                w in str(error) for w in ("asks for", "none of a snapshot's", "opcode that", "outside of it")
            )
            assert is_refused == (opcode.name not in taken), f"{opcode.name}: {error}"
        else:
            pytest.fail(f"{opcode.name} alone gave a value")


def test_an_extension_code_that_is_cached_is_not_taken(tmp_path: Path) -> None:
    """The standard unpickler takes objects out of copyreg's cache without asking `find_class`."""
    import copyreg

    content = (
        b"\x80\x04\x82\xf0(X" + struct.pack("<I", len(str(tmp_path / "ran"))) + str(tmp_path / "ran").encode() + b"tR."
    )
    copyreg.add_extension("posix", "mkdir", 0xF0)
    try:
        assert "EXT1" in refused(stored(tmp_path, content))
        assert not (tmp_path / "ran").exists()
        pickle.loads(content)
        assert (tmp_path / "ran").exists(), "the attack is a real one"
    finally:
        copyreg.remove_extension("posix", "mkdir", 0xF0)
        copyreg.clear_extension_cache()


def test_objects_with_state_and_persistent_ones(tmp_path: Path) -> None:
    assert "asks for" in refused(stored(tmp_path, pickle.dumps({"segments": [SetsState()]})))
    out = io.BytesIO()
    Persistent(out).dump({"segments": [Calls(print)]})
    assert "outside of it" in refused(stored(tmp_path, out.getvalue()))


@pytest.mark.parametrize("what", [(getattr, {}, "clear"), (eval, "1"), (Path, "x"), (bytearray, b"x"), (set, [1])])
def test_not_even_harmless_objects(tmp_path: Path, what: Any) -> None:
    assert "asks for" in refused(stored(tmp_path, pickle.dumps({"segments": [Calls(*what)]}, protocol=2)))


# -- nothing grows -----------------------------------------------------------------------------------------------------


def bounded(file: Path, *, most_s: float = 20.0) -> str:
    """Read the file in a process that has 1 GiB of address space; what it said. A crash or a hang is a failure."""
    script = (
        "import sys; from pathlib import Path\n"
        "from agprof.importers import torch_snapshot\n"
        "try: torch_snapshot.load(Path(sys.argv[1])); print('loaded')\n"
        "except torch_snapshot.TraceError as error: print(error)\n"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        env={**os.environ, "POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert time.monotonic() - begin < most_s
    return done.stdout


HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"Nr\xff\xff\xff\x7f0.", "none of a snapshot's"),  # a memo index: 32 GiB in the standard library, then POP
        (b"\x8d" + HUGE, "breaks off"),  # a text of 4 EiB
        (b"\x8e" + HUGE, "breaks off"),
        (b"\x95" + HUGE + b"\x95" + HUGE, "no list of segments|breaks off|one value"),
        (b"X\xff\xff\xff\xff", "breaks off"),
        (b"\x8b\xff\xff\xff\x7f" + b"\x01" * 99, "a number of"),
        (b"\x8a\xff" + b"\x01" * 255 + b".", "a number of 255 bytes"),
    ],
)
def test_lengths_and_indices_allocate_nothing(tmp_path: Path, body: bytes, words: str) -> None:
    said = bounded(stored(tmp_path, b"\x80\x04" + body))
    assert any(word in said for word in words.split("|")), said


def test_a_memo_index_costs_what_it_holds(tmp_path: Path) -> None:
    body = b"\x80\x04}r\xff\xff\xff\x7f" + text("segments") + b"]s."
    assert bounded(stored(tmp_path, body)) == "loaded\n"


@pytest.mark.parametrize(
    "unit", [b"}", b"]", b"]\x94", b"N", b"(", b")", b"K\x01", b"G" + b"\0" * 8, b"\x8c\x00", b"N\x85"]
)
def test_a_file_of_the_same_opcode_does_not_fill_the_memory(tmp_path: Path, unit: bytes) -> None:
    """4 MiB of `}` are 4 million dictionaries to the standard library: 300 MB. The account ends it."""
    said = bounded(stored(tmp_path, b"\x80\x04" + unit * (4 * MIB // len(unit))), most_s=40)
    assert "bytes of memory" in said or "breaks off" in said


def test_lists_that_are_listed_again_and_again(tmp_path: Path) -> None:
    """30,000 x 30,000 events in 100 KB: small in memory, and endless to go through."""
    event, device = {"action": "alloc", "size": 1, "time_us": 1}, []
    device += [event] * 30_000
    value = {"segments": [], "device_traces": [device] * 200}
    said = bounded(stored(tmp_path, pickle.dumps(value)))
    assert "do not fit into its" in said
    value = {"segments": [{"device": 0, "blocks": device}] * 30_000, "device_traces": []}
    assert "do not fit into its" in bounded(stored(tmp_path, pickle.dumps(value)))


def test_deep_nesting_neither_recurses_nor_crashes(tmp_path: Path) -> None:
    """Hashing a tuple in a tuple in a tuple overflows the C stack: so only texts are keys."""
    deep = b"N" + b"\x85" * 500_000
    assert "key that is a tuple" in bounded(stored(tmp_path, b"\x80\x04}" + deep + b"Ns."))
    lists = b"\x80\x04}" + text("segments") + b"]" * 100_001 + b"a" * 100_000 + b"s."
    assert bounded(stored(tmp_path, lists)) == "loaded\n"


def test_a_collection_that_holds_itself(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert torch_snapshot.load(stored(tmp_path, pickle.dumps({"segments": loop}))).segments == ()


def test_keys_that_collide(tmp_path: Path) -> None:
    """Numbers of one hash make a dictionary quadratic."""
    modulus = sys.hash_info.modulus
    value = {number * modulus: None for number in range(1, 3)}
    assert "key that is a int" in refused(stored(tmp_path, pickle.dumps({"segments": [], "x": value})))


# -- other files that are called so ------------------------------------------------------------------------------------


def test_a_checkpoint_of_torch_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    for name, new in (("new.pt", True), ("old.pt", False)):
        torch.save({"segments": [torch.ones(3)]}, tmp_path / name, _use_new_zipfile_serialization=new)
        with pytest.raises(SystemExit) as caught:
            main(["import", str(tmp_path / name), "--out", str(tmp_path / "run"), "--plain"])
        assert caught.value.code == 5
        assert "memory snapshot" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_packed_ones_are_no_other_way_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = pickle.dumps({**SNAPSHOT, "device_traces": [[Calls(os.mkdir, str(tmp_path / "ran"))]]})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("rank0.pickle", evil)
    (tmp_path / "a.pickle.gz").write_bytes(gzip.compress(evil))
    (tmp_path / "b.zip").write_bytes(inner.getvalue())
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    (tmp_path / "d.pickle").write_bytes(evil)
    for name in ("a.pickle.gz", "b.zip", "c.zip", "d.pickle"):
        with pytest.raises(SystemExit) as caught:
            main(["import", str(tmp_path / name), "--out", str(tmp_path / "run"), "--plain"])
        assert caught.value.code == 5
        assert "asks for 'posix.mkdir'" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gzip.open(tmp_path / "bomb.pickle.gz", "wb", compresslevel=9) as out:
        out.write(b"\x80\x04")
        for _ in range(300):
            out.write(b"}" * MIB)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "bomb.pickle.gz"), "--out", str(tmp_path / "run"), "--plain"])
    assert caught.value.code == 5
    assert "as no trace does" in capsys.readouterr().err


def test_archives_in_archives_end_somewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = b"\x80\x04N."
    for _ in range(400):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("x.zip", packed)
        packed = out.getvalue()
    (tmp_path / "deep.zip").write_bytes(packed)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(tmp_path / "deep.zip"), "--out", str(tmp_path / "run"), "--plain"])
    assert caught.value.code == 5
    assert "archives" in capsys.readouterr().err


# -- the machine itself ------------------------------------------------------------------------------------------------

PLAIN = [
    b"(", b"N", b"\x88", b"K\x05", b"M\x01\x02", b"J\xff\xff\xff\xff", b"\x8a\x01\x05", b"G" + b"\0" * 8, b"\x8c\x01a",
    b"X\x02\0\0\0bc", b"C\x01x", b"]", b"e", b"a", b"l", b"}", b"u", b"s", b"d", b")", b"t", b"\x85", b"\x86", b"\x87",
    b"q\x01", b"\x94", b"h\x00", b"h\x01", b"j\0\0\0\0", b".",
]  # fmt: skip


def test_what_is_taken_is_what_the_standard_library_takes() -> None:
    """Programs by chance: refused with a word of ours, or the very value that `pickle` gives. Never another error."""
    chance = random.Random(1)
    values = 0
    for _ in range(60_000):
        program = (
            chance.choice(PLAIN) if chance.random() < 0.97 else bytes([chance.randrange(256)])
            for _ in range(chance.randrange(1, 25))
        )
        data = b"\x80\x04" + b"".join(program)
        try:
            value = load_plain(data, max_memory_bytes=MIB)
        except (PickleRefusedError, UnicodeDecodeError):
            continue
        try:
            expected = pickle.loads(data)
        except (pickle.UnpicklingError, ValueError):
            continue  # a frame's length, which is only a hint to us, is one that the standard library insists on
        assert repr(value) == repr(expected)
        values += 1
    assert values > 500


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_plain_value(protocol: int) -> None:
    value = {
        "segments": [{"blocks": [], "id": (0, 0), "one": (1,), "three": (1, 2, 3), "four": (1, 2, 3, 4)}],
        "numbers": [0, 255, 256, 65_535, 65_536, -1, -(2**31), 2**31, 2**63, -(2**63), 2**100, 1.5, float("inf")],
        "texts": ["", "é", "\ud800", "a" * 300, "日本" * 40_000],
        "bytes": [b"", b"x" * 255, b"x" * 70_000] if protocol > 2 else [],
        "others": [None, True, False, (), {}, []],
        "many": list(range(3000)),
        "shared": [["x"]] * 300,
    }
    assert load_plain(pickle.dumps(value, protocol=protocol), max_memory_bytes=64 * MIB) == value
