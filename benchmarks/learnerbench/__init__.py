"""Parts of bench_learner.py: one module a question, each with a function that prints its table in Markdown."""
