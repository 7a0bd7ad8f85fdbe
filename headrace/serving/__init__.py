"""The server for agents outside: an OpenAI-compatible chat endpoint in front of the actors of a live run."""
