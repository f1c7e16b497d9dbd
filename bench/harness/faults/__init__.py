"""Faults that a run must survive, one part a file."""
