"""What an evaluation is, without the engines: sets, the verdict on an answer, measures of many verdicts, their
results as files. It imports `common` and, for those files, `learner.storage`; who asks the engines is in
`learner.driver`."""
