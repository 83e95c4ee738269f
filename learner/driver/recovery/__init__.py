"""What the driver does where the learner is lost, and with it every copy of its state in memory."""
