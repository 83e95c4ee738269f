"""What the one driver process does: checks a run before it starts, opens its parts, drives engines and ranks, syncs
weights, evaluates, ends. It is the only room that imports `rollout`; it may import every other room of the learner
but `memory`."""
