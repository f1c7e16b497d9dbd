"""Numeric operations of activation × gradient attribution, on tensors alone.

`reference` holds what each operation computes in plain torch.
"""
