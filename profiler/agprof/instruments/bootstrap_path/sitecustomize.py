"""Python imports this at start-up because its folder is first on PYTHONPATH.

It runs in every Python process below `agprof run`: in launchers and helpers it does nothing. It never prints (children
of some libraries are parsed from their stdout) and never fails the interpreter's start.
"""

import os
import sys


def _chain() -> None:
    """Run the sitecustomize that this one hides, as Python would have."""
    import importlib.machinery
    import importlib.util

    here = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    ours = sys.modules.get("sitecustomize")
    sys.modules["sitecustomize"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if ours is not None:
            sys.modules["sitecustomize"] = ours
        raise


def _arm() -> None:
    environ = os.environ
    if "AGPROF_RUN_DIR" not in environ or "RANK" not in environ:
        return
    # A rank's children inherit its environment: the process id tells them apart. After an os.exec it still matches.
    if environ.get("AGPROF_RANK_PID", str(os.getpid())) != str(os.getpid()):
        return
    environ["AGPROF_RANK_PID"] = str(os.getpid())
    try:
        from agprof.instruments import bootstrap
    except ImportError:
        sys.path.append(environ["AGPROF_HOME"])
        from agprof.instruments import bootstrap
    bootstrap.start()


try:
    _arm()
except Exception as error:
    # There is no recorder to tell yet; the launcher reports a rank without a stream and points to this variable.
    os.environ["AGPROF_BOOTSTRAP_ERROR"] = f"{type(error).__name__}: {error}"
_chain()
