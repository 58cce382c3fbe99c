"""`agprof show`."""

from pathlib import Path
from typing import Annotated

import typer


def show(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Print the summary of a run again.

    It is computed from the run folder, so it also works while the job runs.
    """
    from rich.console import Console

    from agprof.cli.report import analyse_folder, print_summary

    print_summary(analyse_folder(run), run, Console(highlight=False))
