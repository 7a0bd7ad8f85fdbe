"""The stages of a run file, in order: each reads as its algorithm, the ring does the rest. Every stage resumes where it stopped."""
