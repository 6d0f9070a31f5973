"""A run as a space-time diagram: what the picture shows, and the two ways to draw it."""
