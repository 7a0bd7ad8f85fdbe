"""A pool of learners: one model sharded over several processes, one of which plans."""
