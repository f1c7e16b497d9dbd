"""Neurons of any `nn.Module`, by path and column."""
