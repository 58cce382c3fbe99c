"""workload.yaml -> Workload, checked before anything starts."""
