"""What a model takes, from its configuration alone."""
