"""`python -P -m client`."""

from client.cli import main

main()
