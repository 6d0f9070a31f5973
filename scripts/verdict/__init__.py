"""The verdict on a run: what it left (evidence), how it is read (load) and how it is judged (properties)."""
