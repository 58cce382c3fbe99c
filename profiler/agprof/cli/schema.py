"""`agprof schema`."""


def schema() -> None:
    """Print the JSON schema of workload files, for editors that complete and check YAML.

    Save it as `agprof schema > workload.schema.json` and begin a workload file with the line
    `# yaml-language-server: $schema=workload.schema.json`.
    """
    import json

    from agprof.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
