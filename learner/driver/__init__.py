"""What the one driver process does: checks a run in `preflight`, opens its parts, drives engines and ranks, syncs
weights, evaluates, finishes. No other room imports `rollout`; this one may import every room of the learner but
`memory`, `model` and `embedded`, which only `preflight` reads."""
