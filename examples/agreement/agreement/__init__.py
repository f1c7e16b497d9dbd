"""Which neurons of a small language model make a verb agree with its subject."""
