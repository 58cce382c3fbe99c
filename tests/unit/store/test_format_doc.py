"""docs/run-format.md tells of every table and column that there is."""

import subprocess
import sys
from pathlib import Path

from agprof.model.tables import TABLES

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "format-doc"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "run-format.md").read_text(encoding="utf-8")
    for table in TABLES:
        assert f"#### `{table.name}`" in page
        assert all(f"| `{column.name}` | {column.type} |" in page for column in table.columns)
