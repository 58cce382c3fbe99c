"""`agprof export`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="nsys-rep, nvtxt, chrome, perfetto or parquet. Repeatable, or several with commas.",
            metavar="NAME",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the files; RUN/exports when left out.")] = None,
) -> None:
    """Write a run for Nsight Systems, Perfetto and others.

    Prints the path of each file. Exit code 5 when a format can't be written; the others are written all the same.
    """
    from agprof.errors import TraceError
    from agprof.exporters.formats import EXPORTERS

    names = check_names([name.strip() for given in formats for name in given.split(",")], tuple(EXPORTERS))
    failures = write_exports(run, names, out)
    if failures:
        raise TraceError("\n".join(failures))


def check_names(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names, each once. Raises ConfigError for one that nobody knows."""
    from difflib import get_close_matches

    from agprof.errors import ConfigError

    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"--format {name!r}: there is no such format; {hint}")
    return list(dict.fromkeys(names))


def write_exports(run_dir: Path, names: Sequence[str], out: Path | None = None) -> list[str]:
    """Write the formats and print the files' paths; what failed, in sentences.

    Raises StoreError when the run folder can't be read or the output folder can't be made.
    """
    from agprof.errors import AgprofError, StoreError
    from agprof.exporters.formats import EXPORTERS
    from agprof.store import layout
    from agprof.store.reader import read_run

    run = read_run(run_dir.absolute())
    folder = (out if out is not None else run.path / layout.EXPORTS).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} can't be made: {error.strerror}; name another folder with --out") from error
    failures = []
    for name in names:
        try:
            files = EXPORTERS[name](run, folder, say)
        except AgprofError as error:
            failures.append(f"{name} could not be written: {error}")
        except OSError as error:
            failures.append(f"{name} could not be written to {folder}: {error.strerror or error}")
        else:
            for file in files:
                print(file)
    return failures


def say(line: str) -> None:
    """Progress and remarks go to stderr, so that stdout holds the paths alone."""
    print(line, file=sys.stderr, flush=True)
