"""A layer as one autograd function that scores in its own backward."""
