"""What rollout and learner both need: types, configuration, prompts, data, answers, placement."""
