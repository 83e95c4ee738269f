"""What a run changes about itself between steps: coefficients of the loss, and which rows it asks again. Its state is
part of a checkpoint. It imports `common`, `learner.objective` and what a step gives."""
