"""A run that makes no progress: what the driver waits for, where every process stands, and one line on it. It imports
`common` and the guard's look at the terminal; `learner.driver` opens it."""
