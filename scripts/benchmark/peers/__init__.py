"""Other lock services on the same machine in the same run, each at its best setting, beside ours."""
