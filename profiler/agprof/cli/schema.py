"""`agprof schema`."""


def schema() -> None:
    """Print the JSON schema of workload files.

    Editors that know it complete and check a workload file. Save it with `agprof schema > workload.schema.json` and
    begin the workload file with the line `# yaml-language-server: $schema=workload.schema.json`.
    """
    import json

    from agprof.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
