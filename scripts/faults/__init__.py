"""A run in which things fail: which faults (schedule), in which surroundings, on which processes, to which end."""
