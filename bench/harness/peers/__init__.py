"""Other libraries and ours on the same neurons, each as its user would write it."""
