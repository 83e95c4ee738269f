"""What is refused before a cluster is touched, as one line of steps: builds, data, labels, model, evaluation. Each step
returns one complete type. It imports `common`, the checks of `rollout.rewards`, and the rooms a run is checked against;
it may import nothing of `learner.driver`."""
