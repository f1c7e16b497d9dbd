"""A long run: every sample once, whatever happens in between."""
