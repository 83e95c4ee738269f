"""What an engine exchanges: prompts and completions with vLLM, messages with the fleet. It may import what `common`
knows of models, and `rollout`; vLLM only inside its functions."""
