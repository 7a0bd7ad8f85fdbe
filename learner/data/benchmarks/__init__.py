"""Benchmarks in the formats that they are published in, one class each: a table (``path``) read by the class that ``use`` names."""
