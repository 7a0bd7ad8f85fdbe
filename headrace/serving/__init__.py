"""The door that agents outside come in by: an OpenAI-compatible chat endpoint in front of the actors of a live run."""
