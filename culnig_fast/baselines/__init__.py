"""Other ways to choose neurons, and what single neurons do: the methods that activation × gradient is argued against.

All of them stand on the same layout and end in a NeuronSet, so that suppression and evaluation are the same for all.
"""
