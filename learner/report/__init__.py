"""The report: one HTML page of one run or several, from the files in their folders, without scripts. It imports the
records of `learner.tracking` and the files of `learner.storage`; it never sees a live run."""
