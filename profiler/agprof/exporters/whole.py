"""Files that appear when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Where to write a file that takes its name at the end of the block; when the block fails, all is as before.

    The place has a hidden name beside it, so that folders of exports can be read meanwhile. Raises OSError.
    """
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
