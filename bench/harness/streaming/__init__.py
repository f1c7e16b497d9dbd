"""Streamed attribution against the model in memory, each measured in a process of its own."""
