"""A run of scripts/launch: what was asked, the processes that do it, what people see, what stays on record."""
