"""What is refused before a cluster is touched, as one line of steps: builds, capacity, data, labels, model, evaluation,
and the run folder with its checkpoints. Each step returns one complete type. It imports `common`, `rollout`, and the
rooms a run is checked against; it may import nothing of `learner.driver`."""
