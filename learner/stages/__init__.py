"""The kinds of stages of a run file: each module reads like its algorithm. Every stage resumes where it stopped."""
