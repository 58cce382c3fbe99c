"""All errors that agprof raises on purpose.

AgprofError                 exit code 70: a fault of agprof itself unless a subclass says otherwise
├── ConfigError             exit code 2: the workload file or an option is wrong; nothing was started
├── LaunchError             exit code 3: the job could not be started (missing program, port, folder)
├── StoreError              exit code 4: a run folder can't be written or read
└── TraceError              exit code 5: a trace file can't be read or written

A job that failed by itself ends with the job's own exit code (128 + n when signal n killed it).
A message says which value, which rule, and what to do.
"""


class AgprofError(Exception):
    """Base of every error that `agprof` raises on purpose."""

    exit_code = 70


class ConfigError(AgprofError):
    """The workload file or a command-line option is wrong; nothing was started."""

    exit_code = 2


class LaunchError(AgprofError):
    """The job could not be started."""

    exit_code = 3


class StoreError(AgprofError):
    """A run folder could not be written or read."""

    exit_code = 4


class TraceError(AgprofError):
    """A trace file could not be read or written."""

    exit_code = 5
