"""Numeric operations of activation × gradient attribution, on tensors alone.

`reference` holds what each operation computes in plain torch; the modules beside it hold the Triton kernels, one
operation a file, under the same names: `from culnig_kernels.actgrad import actgrad_reduce`. `native` holds the fast
path of machines without a GPU, compiled, and `cpu` what takes its place where it does not apply. Importing this
package, `reference`, `native` or `cpu` imports no Triton and touches no GPU.
"""
