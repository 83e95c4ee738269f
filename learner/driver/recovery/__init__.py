"""What the driver does where the learner is lost, and with it every copy of its state in memory. It imports the run
and its storage; the entry point alone imports it."""
