"""scripts/bench: what Lockstep costs, as ratios to what this machine can do at best, measured in the same run."""
