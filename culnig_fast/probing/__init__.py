"""What a layer does, found out by running it."""
