"""Files and choices of other programs, in and out."""
