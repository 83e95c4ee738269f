"""Trackers of others that a run also tells its numbers: Weights & Biases, MLflow, Trackio. Each stands in a file of its
own, imports its client where it is used, and knows nothing of the run; `courier.py` alone calls them. It imports
`common.storage`."""
