"""What the commands in this folder run: the launcher, the checker and the benchmark."""
