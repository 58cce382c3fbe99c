"""`agprof init`."""

from pathlib import Path
from typing import Annotated

import typer


def init(
    name: Annotated[str, typer.Argument(help="Bundled workload, as `agprof workloads` lists it.")],
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.yaml here when left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
) -> None:
    """Write a bundled workload's file out for editing."""
    import shlex

    from agprof.config.problems import printable

    target = write_workload(name, out, force=force)
    print(f"wrote {printable(str(target))}")
    print("next:")
    print(f"  agprof run {shlex.quote(printable(str(target)))}")


def write_workload(name: str, out: Path | None, *, force: bool) -> Path:
    """Copy the bundled workload's file to `out` (default: `NAME.yaml` here) and return where it is.

    Raises ConfigError: no such workload, the file exists and not `force`, or it can't be written.
    """
    from agprof.config.bundled import bundled_workloads, find_bundled
    from agprof.config.problems import nearest, printable, shown
    from agprof.config.source import read_source
    from agprof.errors import ConfigError

    bundled = find_bundled(name)
    if bundled is None:
        names = [known.name for known in bundled_workloads()]
        close = nearest(name, names)
        hint = f"did you mean {shown(close)}?" if close else f"bundled workloads: {', '.join(names) or 'none'}"
        raise ConfigError(f"{shown(name)} is no bundled workload; {hint}")
    target = out if out is not None else Path(f"{bundled.name.replace('/', '-')}.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {printable(str(target))}: a workload file's name ends in .yaml")
    shown_target = printable(str(target))
    text = read_source(bundled.path)
    try:
        # Mode x fails when the file exists, also as a dangling link: nothing is looked up first and written later.
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{shown_target} exists; write over it with --force, or name another --out") from None
    except OSError as error:
        raise ConfigError(f"{shown_target} can't be written: {error.strerror}; name another --out") from None
    return target
