"""The auditor: reads what a run left behind, and says which promise it broke, or where two runs part. It imports the
records of `learner.tracking` and the files of `learner.storage`; it never sees a live run."""
