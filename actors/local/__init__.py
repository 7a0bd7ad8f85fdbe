"""The local engine: samples from a small model with torch, in this process. For large models use SGLang servers."""
