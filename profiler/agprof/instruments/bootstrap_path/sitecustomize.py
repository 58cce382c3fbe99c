"""Python imports this at start-up because its folder is first on PYTHONPATH.

It runs in every Python process below `agprof run`: in launchers and helpers it does nothing. It never writes to stdout
(children of some libraries are parsed from it) and never fails the interpreter's start. It imports nothing but what
the interpreter has imported already, since every process of a job waits for it.
"""

import os
import sys


def _chain() -> None:
    """Import the sitecustomize that this one hides, as Python would have; its errors are its own."""
    here = os.path.dirname(os.path.abspath(__file__))
    # For good: nothing in this process has to find this folder again, and its children have PYTHONPATH.
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    ours = sys.modules.pop("sitecustomize")
    try:
        import sitecustomize  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours


def _arm() -> None:
    environ = os.environ
    if environ.pop("AGPROF_PASS", None) is not None or "AGPROF_RUN_DIR" not in environ:
        return
    if environ.get("AGPROF_UNDER_NSYS") == "holder":
        return  # a helper of nsys, above the rank
    foreign = "AGPROF_FOREIGN" in environ
    if "RANK" not in environ and not foreign:
        return
    # A rank's children inherit its environment: the process id tells them apart. After an os.exec it still matches.
    if environ.get("AGPROF_RANK_PID", str(os.getpid())) != str(os.getpid()):
        return
    if foreign:
        _place().start_foreign()
        return
    environ["AGPROF_RANK_PID"] = str(os.getpid())
    _place().start_rank()


def _place():
    try:
        from agprof.instruments import place
    except ImportError:
        sys.path.append(os.environ["AGPROF_HOME"])
        from agprof.instruments import place
    return place


try:
    _arm()
except Exception as error:
    # There is no recorder to tell; the line ends in the rank's log.
    os.environ["AGPROF_BOOTSTRAP_ERROR"] = f"{type(error).__name__}: {error}"
    try:
        sys.stderr.write(f"agprof: this rank is not profiled: {type(error).__name__}: {error}\n")
    except Exception:
        pass
_chain()
