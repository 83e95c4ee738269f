"""What an evaluation is, without the engines: sets, the verdict on an answer, measures of many verdicts, their
results as files. It imports `common` only; who asks the engines is in `learner.driver`."""
