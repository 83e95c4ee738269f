"""Sampling and scoring: vLLM engines behind one fleet, and the reward actor."""
