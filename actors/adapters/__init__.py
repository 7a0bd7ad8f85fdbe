"""Environments that others have made, as environments of this project."""
