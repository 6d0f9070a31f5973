"""`python -P -m lockd`."""

from lockd.cli import main

main()
