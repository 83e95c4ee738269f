"""The sampling half: vLLM engines as Ray actors, the fleet that keeps them serving the newest weights, and the pool
of reward actors. Every import of vLLM and every patch of it lives here. It imports `common` only, never `learner`."""
