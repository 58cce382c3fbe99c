"""`python -m agprof`."""

from agprof.cli.main import main

main()
