from pathlib import Path
from typing import Any

import pytest

from agprof_workloads.anomalygpt.miniature import miniature
from agprof_workloads.deepspeed_chat.checkpoints import tokenizer_from
from agprof_workloads.deepspeed_chat.text import built_in


@pytest.fixture(scope="session")
def miniature_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def chat_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds DeepSpeed-Chat's built-in texts."""
    cache = tmp_path_factory.mktemp("chat")
    built_in(1024, cache)
    return cache


@pytest.fixture(scope="session")
def chat_tokenizer(chat_cache: Path) -> Any:
    return tokenizer_from(built_in(1024, chat_cache) / "tokenizer")
