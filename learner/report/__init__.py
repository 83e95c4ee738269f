"""The report: one HTML page of one run or several, from the files in their folders, without scripts. It imports the
records of `learner.tracking`, the files of `learner.storage` and the measures of `learner.evaluation`; it never sees a
live run."""
