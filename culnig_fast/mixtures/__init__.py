"""Mixtures of experts: found and proved, laid open, scored by the tokens that reached them."""
