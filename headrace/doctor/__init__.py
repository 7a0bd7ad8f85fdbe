"""``headrace doctor``: whether this machine can run headrace; ``headrace doctor RUN``: what a run waits for, and why."""
