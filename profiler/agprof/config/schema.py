"""The workload file as a JSON schema, for editors that complete and check YAML."""

from typing import Any

from agprof.config.workload import Workload


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12). Its descriptions are the docstrings of `config.workload`."""
    schema = Workload.model_json_schema()
    schema.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agprof workload",
        "description": "A training job and how to profile it: the file that `agprof run` takes.",
        **{key: value for key, value in schema.items() if key != "title"},
    }
