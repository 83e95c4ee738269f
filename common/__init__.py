"""What rollout and learner both need, and nothing that only one of them does: the types that cross process
boundaries, errors, waiting with a deadline, memory and checksums. It imports no other room of ours; its sub-packages
(config, labels, models, data) import it and each other, never `rollout` or `learner`."""
