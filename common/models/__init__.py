"""A model's files but for its weights: family, processor, tokenizer, chat template, the prompt that all of them make
of a row. What needs weights belongs to `learner.model` or to `rollout`. It imports `common`, its config, labels and
data."""
