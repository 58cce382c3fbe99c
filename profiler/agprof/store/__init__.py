"""The run folder: the interface between what measures and what explains. Layout in docs/run-format.md."""
