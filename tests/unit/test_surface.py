"""The public surface, and that every page that is linked exists."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest

import agprof

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_public_names_are_these():
    assert agprof.__all__ == ["__version__", "annotate", "mark", "range", "step"]


def test_the_counts_of_a_step_are_these():
    assert list(inspect.signature(agprof.step).parameters) == ["tokens", "samples", "unpadded_tokens"]


def test_the_version_stands_in_two_places_and_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == agprof.__version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
