"""An instrument that breaks, whichever it is, leaves the training and its exit code alone and stands in the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agprof.launch import host
from agprof.store import layout

SCRIPTS = Path(__file__).parent / "scripts"

BREAK = '''
"""A user's own sitecustomize, in whose environment an instrument of agprof can't work."""
import functools, importlib, os, sys


class _After:
    """Breaks a function of one of agprof's modules as soon as that module is imported."""

    def __init__(self, module, path):
        self.module, self.path = module, path

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            owner = module
            *owners, last = self.path.split(".")
            for word in owners:
                owner = getattr(owner, word)

            def broken(*args, **kwargs):
                raise ZeroDivisionError("provoked")

            setattr(owner, last, broken)

        spec.loader.exec_module = exec_module
        return spec


import importlib.util
sys.meta_path.insert(0, _After(*os.environ["BREAKS"].split(":")))
'''

# instrument: (what breaks, the command)
PLAIN = ("python", "accumulate.py")
DDP = ("torchrun", "--standalone", "--nproc-per-node", "2", "ddp_no_sync.py")
ZERO = ("python", "zero.py", "--stage", "1")
CASES = {
    "facts": ("agprof.instruments.facts:record_model", PLAIN),
    "training": ("agprof.instruments.training:TrainingLoop._do_begin_backward", PLAIN),
    "training at its arming": ("agprof.instruments.training:TrainingLoop.arm", PLAIN),
    "forward": ("agprof.instruments.forward:ForwardPhases._announce", PLAIN),
    "data": ("agprof.instruments.data:arm", PLAIN),
    "data.counts": ("agprof.instruments.data:batch_counts", PLAIN),
    "memory": ("agprof.instruments.memory:arm", PLAIN),
    "flops": ("agprof.instruments.flops:FlopsPart.begin", PLAIN),
    "flops at an operation": ("agprof.instruments.flops_count:FlopsCount.listen", PLAIN),
    "profile step": ("agprof.instruments.profile_step:ProfileStep._begin", PLAIN),
    "memory account": ("agprof.instruments.memory_account:MemoryAccount.begin", PLAIN),
    "memory account at its end": ("agprof.instruments.memory_account:MemoryAccount.end", PLAIN),
    "comm": ("agprof.instruments.comm:size_and_dtype", DDP),
    "ledger": ("agprof.instruments.ledger:Ledger.finish", DDP),
    "nvtx": ("agprof.instruments.nvtx_ranges:NvtxRanges.__init__", PLAIN),
    "optimizer state": ("agprof.instruments.optimizer_state:state_bytes", PLAIN),
    "rlhf": ("agprof.instruments.rlhf:arm", PLAIN),
    "deepspeed": ("agprof.instruments.deepspeed_engine:EnginePhases._begin_step", ZERO),
}


IN_CI_ONLY = {
    "training at its arming", "data.counts", "flops at an operation", "memory account at its end", "ledger", "nvtx",
    "optimizer state", "rlhf",
}  # fmt: skip


@pytest.mark.parametrize(
    "instrument",
    [pytest.param(name, marks=[pytest.mark.slow] if name in IN_CI_ONLY else []) for name in CASES],
)
def test_a_broken_instrument_is_reported_and_the_training_goes_on(instrument: str, tmp_path: Path) -> None:
    breaks, command = CASES[instrument]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAK)
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_") or "CACHE" in name}
    env |= {"BREAKS": breaks, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path / "site"), env.get("PYTHONPATH")]))
    if command is ZERO:
        env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        env["MASTER_PORT"] = str(host.free_port())
    under = [sys.executable, "-m", "agprof", "run", "--plain", "--out", str(tmp_path / "out"), "--", *command]
    done = subprocess.run(under, cwd=SCRIPTS, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "out").iterdir()
    assert "done 6 steps" in layout.rank_log(folder, 0, "stdout").read_text()
    problems = json.loads((folder / layout.REPORT_JSON).read_text())["quality"]["problems"]
    name = instrument.partition(" at ")[0]
    assert any(f"Instrument {name} failed" in problem and "provoked" in problem for problem in problems), problems
