"""What happens when a rank is lost: it is noticed and named, and all ranks are built anew with the state they had.
`learner/trainer` imports it."""
