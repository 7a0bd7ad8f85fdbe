"""What can be known of a run before it starts: its settings, plug-ins, rows, template and model. One list of checks: ``checks.py``."""
