"""The ranks: groups dealt into micro-batches, forward, backward and optimizer step under DeepSpeed ZeRO, weights out
to the engines. DeepSpeed is imported in `zero` alone. It imports `learner.model` and the losses of
`learner.objective`."""
