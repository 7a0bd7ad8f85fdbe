"""The embedded log's parts: one file per topic, and the consumer groups."""
