"""A model of the protocol in TLA+, and a program that has TLC check it: python -m tests.model. See README.md."""
