"""What a run's files say: one analysis a file, each a pandas DataFrame; `catalogue` draws them.

Score tables, neuron sets and results come in, no model. A figure is drawn from the csv of its analysis alone.
"""
