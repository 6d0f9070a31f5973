"""The lock daemon: one per group."""
