"""The JSON schema says what the loader does."""

from typing import Any

from agprof.config.check import known_keys
from agprof.config.monitor import MonitorSection
from agprof.config.schema import json_schema
from agprof.config.workload import LaunchSection, ProfileSection, Workload


def properties() -> dict[str, Any]:
    """All keys of the schema, dotted."""
    schema = json_schema()
    found = {}
    for key, value in schema["properties"].items():
        references = [way["$ref"] for way in (value, *value.get("anyOf", ())) if "$ref" in way]
        if references:
            section = schema["$defs"][references[0].rpartition("/")[2]]
            found |= {f"{key}.{inner}": described for inner, described in section["properties"].items()}
        else:
            found[key] = value
    return found


def test_the_schema_knows_every_key_and_describes_it() -> None:
    assert sorted(properties()) == sorted(known_keys())
    for key, value in properties().items():
        assert value.get("description"), key


def test_unknown_keys_are_refused_everywhere() -> None:
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert all(section["additionalProperties"] is False for section in schema["$defs"].values())


def test_the_schema_names_its_own_version_and_what_is_required() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["name"]


def test_environment_values_may_be_numbers() -> None:
    assert properties()["launch.env"]["additionalProperties"] == {"type": ["string", "number"]}


def test_every_field_of_the_workload_has_a_docstring() -> None:
    for model in (Workload, LaunchSection, ProfileSection, MonitorSection):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
