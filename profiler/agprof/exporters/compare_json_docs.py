"""docs/compare-json.md from the dataclasses of `model.compare_answers`, their docstrings included.

python -m agprof.exporters.compare_json_docs > docs/compare-json.md
"""

from agprof.exporters.report_json_docs import document_of
from agprof.model import compare_answers, figure

_HEAD = f"""# compare.json

Written by [`agprof compare`](compare.md) beside `compare.html`: runs beside one another, UTF-8 JSON, the same bytes for
the same runs. This page is generated from `agprof.model.compare_answers`; version {compare_answers.COMPARE_VERSION}
(key `version`), raised when a key changes its meaning or goes away. New keys may appear at any time.

- A list with one entry per side is in the order of `sides`; `baseline` is the index of the one compared with.
- The `change` of a waterfall's parts add up to the difference of its totals exactly, in floating point too.
- What was not measured is `null`, never 0, and a Figure says why in `reason`. There is no NaN and no infinity.
- Text from the jobs (labels, names of modules, hosts) is given as it was found: escape it before showing it.

Read it back in Python:

```python
from pathlib import Path
from agprof.exporters import compare_json

answer = compare_json.decode(Path("compare.json").read_bytes())
print(answer.sentence)
```
"""


def document() -> str:
    """The page as Markdown."""
    return document_of((compare_answers, figure), "CompareAnswer", _HEAD)


if __name__ == "__main__":
    print(document(), end="")
