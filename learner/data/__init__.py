"""Where prompts and training documents come from."""
