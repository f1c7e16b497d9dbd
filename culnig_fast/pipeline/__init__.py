"""A whole run from one config: scores, neuron sets, evaluation under every intervention, tables.

`config` says what a run is, `reading` takes it from a file, `manifest` says what of it is done, `stages` what there is
to do, `run` does it, `estimate` says how long it will take.
"""
