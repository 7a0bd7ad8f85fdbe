"""The control road: who is alive, who receives weights, and which version is the newest (pyzmq)."""
