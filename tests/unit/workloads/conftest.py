from pathlib import Path

import pytest

from agprof_workloads.anomalygpt.miniature import miniature


@pytest.fixture(scope="session")
def miniature_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("cache"))
