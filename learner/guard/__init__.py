"""The driver's own ring: its parent process, what it tells that, and what is left of a lost run. `learner.driver` may
import it; it imports `common`, and of the learner what reads and writes the files of a run."""
