"""Which neurons are chosen from score tables: pools, thresholds, rankings."""
