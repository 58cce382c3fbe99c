"""`agprof workloads`."""


def workloads() -> None:
    """List the bundled workloads.

    Each with its name, what it is and its file. Run one with `agprof run NAME`; change one with `agprof init NAME`,
    which writes its file out for editing.
    """
    import sys

    from agprof.config.bundled import bundled_workloads
    from agprof.config.load import load_workload

    rows = [(name, load_workload(name).workload.description, str(path)) for name, path in bundled_workloads()]
    if not rows:
        print("no workload is bundled with this installation", file=sys.stderr)
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            print("\t".join(row))


def _print_table(rows: list[tuple[str, str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "description", "file", box=None, header_style="bold", pad_edge=False)
    for name, description, path in rows:
        table.add_row(Text(name, style="bold", no_wrap=True), Text(description), Text(path, overflow="fold"))
    Console().print(table)
