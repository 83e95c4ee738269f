"""What the driver tells of a run while it goes on: figures for Prometheus, its own log, and the logs of its actors. It
imports what keeps and tracks a run, and the rollout side that it looks at; the driver imports it."""
