import json
import shutil
import subprocess

import pytest

from agprof.instruments import nvtx_ranges

# A tool as NVTX loads it (NVTX_INJECTION64_PATH): it writes what it is told to a file, a line each.
TOOL = r"""
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { uint16_t version, size; uint32_t category; int32_t colour_type; uint32_t colour;
                 int32_t payload_type, reserved; union { uint64_t u; double d; } payload;
                 int32_t message_type; const void *message; } attributes_t;
typedef struct { size_t size; int (*functions)(uint32_t module, void ****table, unsigned *count); } callbacks_t;

static FILE *out;
static void say(const char *what, const char *domain, const char *name) {
    fprintf(out, "[\"%s\", \"%s\", \"%s\"]\n", what, domain ? domain : "", name ? name : "");
    fflush(out);
}
static void *create(const char *name) { return strdup(name); }
static void *string(void *domain, const char *text) { return strdup(text); }
static int push(void *domain, const attributes_t *a) { say("push", domain, a->message); return 0; }
static int pop(void *domain) { say("pop", domain, ""); return 0; }
static uint64_t start(void *domain, const attributes_t *a) { say("start", domain, a->message); return 7; }
static void end(void *domain, uint64_t id) { say("end", domain, id == 7 ? "7" : "?"); }

int InitializeInjectionNvtx2(const void *(*table)(uint32_t)) {
    out = fopen(getenv("TOOL_OUT"), "a");
    const callbacks_t *callbacks = table(1);
    void ***functions; unsigned count;
    if (!out || !callbacks || !callbacks->functions(5, &functions, &count) || count < 13) return 0;
    *functions[2] = (void *)start; *functions[3] = (void *)end;
    *functions[4] = (void *)push; *functions[5] = (void *)pop;
    *functions[10] = (void *)string; *functions[12] = (void *)create;
    return 1;
}
"""

SCRIPT = """
import torch, agprof
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    with agprof.range("mine"):
        loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_real_tool_sees_phases_ranges_and_steps(rank_process):
    source = rank_process.folder / "tool.c"
    source.write_text(TOOL)
    library = source.with_suffix(".so")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    out = rank_process.folder / "tool.out"
    finished = rank_process.start(SCRIPT, NVTX_INJECTION64_PATH=str(library), TOOL_OUT=str(out))
    assert finished.code == 0, finished.log("stderr")
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert {domain for _what, domain, _name in events} == {"agprof"}
    step = [
        ["push", "forward"], ["pop", ""], ["pop", ""],
        ["push", "backward"], ["pop", ""], ["push", "optimizer"], ["pop", ""], ["end", "7"],
    ]  # fmt: skip
    expected = [["push", "mine"], ["start", "step 0"], *step, ["start", "step 1"]]
    expected += [
        ["push", "mine"],
        *step,
        ["start", "step 2"],
        ["push", "mine"],
        *step,
        ["start", "step 3"],
        ["end", "7"],
    ]
    assert [[what, name] for what, _domain, name in events] == expected


class Domain:
    """Counts what it is told to do."""

    def __init__(self):
        self.depth = 0
        self.open = set()
        self.names = set()
        self.started = []

    def get_event_attributes(self, message, color, payload=None):
        self.names.add(message)
        return message, payload

    def push_range(self, attributes):
        self.depth += 1

    def pop_range(self):
        self.depth -= 1

    def start_range(self, attributes):
        message, payload = attributes
        self.started.append((message, payload))
        self.open.add(payload)
        return payload

    def end_range(self, token):
        self.open.remove(token)


@pytest.fixture
def ranges(monkeypatch):
    domain = Domain()
    import nvtx

    monkeypatch.setattr(nvtx, "get_domain", lambda _name: domain)
    return nvtx_ranges.NvtxRanges(), domain


def test_pushes_and_pops_balance_also_for_what_is_open_at_the_end(rig, ranges):
    rig.recorder.nvtx, domain = ranges
    outer = rig.recorder.open("phase", "forward")
    rig.recorder.open("range", "left open")
    rig.recorder.close(outer)
    rig.recorder.end_step()
    rig.recorder.discard(rig.recorder.open("phase", "optimizer"))
    rig.recorder.open("phase", "backward")
    assert domain.depth == 1
    rig.finish()
    assert (domain.depth, domain.open) == (0, set())


def test_names_are_bounded(rig, ranges, monkeypatch):
    monkeypatch.setattr(nvtx_ranges, "MAX_NAMES", 20)
    rig.recorder.nvtx, domain = ranges
    for number in range(100):
        rig.recorder.close(rig.recorder.open("range", f"range {number}"))
        rig.recorder.end_step()
    assert len(domain.names) <= 2 * 20 + 3
    assert domain.started[-1] == ("step (later)", 100)


def test_without_a_tool_there_are_no_ranges():
    assert not nvtx_ranges.NvtxRanges().active


class OldTool:
    """The private parts of nvtx 0.2.12 and later, as they are under an nsys that says it is switched off."""

    def __init__(self, enabled=False, broken=False):
        made = self.made = []

        class DomainHandle:
            def __init__(self, name):
                self.name = name

            def enabled(self):
                return enabled

        class Domain:
            def __new__(cls, name):
                raise AssertionError("would give a domain that does nothing")

            def __init__(self, name):
                made.append(name)

            def get_event_attributes(self, message, color=None):
                if broken:
                    raise TypeError
                return message

            def push_range(self, attributes): ...
            def pop_range(self): ...

        class DummyDomain(Domain):
            def __new__(cls):
                return object.__new__(cls)

            def __init__(self): ...

        self.lib = type("lib", (), {"DomainHandle": DomainHandle, "Domain": Domain})
        self.dummy = DummyDomain()

    def install(self, monkeypatch):
        import nvtx

        monkeypatch.setattr(nvtx, "get_domain", lambda _name: self.dummy)
        monkeypatch.setattr(nvtx._lib, "lib", self.lib)


def test_a_tool_that_says_it_is_off_gets_its_ranges(monkeypatch):
    tool = OldTool()
    tool.install(monkeypatch)
    monkeypatch.setenv("NVTX_INJECTION64_PATH", "/nsys/libToolsInjection64.so")
    ranges = nvtx_ranges.NvtxRanges()
    assert ranges.active and ranges.forced
    assert tool.made == ["agprof"]


@pytest.mark.parametrize(("attached", "options"), [(False, {}), (True, {"enabled": True}), (True, {"broken": True})])
def test_nothing_is_forced_without_a_tool_or_a_way(monkeypatch, attached, options):
    OldTool(**options).install(monkeypatch)
    monkeypatch.delenv("NVTX_INJECTION64_PATH", raising=False)
    if attached:
        monkeypatch.setenv("NVTX_INJECTION64_PATH", "/nsys/libToolsInjection64.so")
    ranges = nvtx_ranges.NvtxRanges()
    assert not ranges.active and not ranges.forced


def test_other_names_in_nvtx_are_no_error(monkeypatch):
    OldTool().install(monkeypatch)
    import nvtx

    monkeypatch.setattr(nvtx._lib, "lib", object())
    monkeypatch.setenv("NVTX_INJECTION64_PATH", "/nsys/libToolsInjection64.so")
    assert not nvtx_ranges.NvtxRanges().active
