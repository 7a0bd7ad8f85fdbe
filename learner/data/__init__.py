"""Sources of prompts and training documents."""
