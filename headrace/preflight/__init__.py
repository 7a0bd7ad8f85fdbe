"""Checks a run before it starts: its settings, plug-ins, rows, template and model. ``checks.py`` lists all checks."""
