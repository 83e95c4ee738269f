"""The tiny model that is made on the spot for a run's own questions, so that anyone can watch a run learn on a
laptop. It imports `common` and `learner.text` only."""
