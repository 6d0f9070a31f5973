"""A client: a session with lockd, and usually a replica of the group's files."""
