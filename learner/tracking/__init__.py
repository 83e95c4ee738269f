"""What a run tells while it runs: step records, console, live display, TensorBoard, the model card. It imports
`learner.storage` for the files and `learner.evaluation` for the names of measures."""
