"""Learning: DeepSpeed ranks, the shared-prefix forward, the objective, checkpoints and the entry point."""
