"""The test suite; `scripts/test` runs all of it."""
