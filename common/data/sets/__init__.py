"""The parts of `python -m common.data.build`: CLS-RL sets out of labelled pictures."""
