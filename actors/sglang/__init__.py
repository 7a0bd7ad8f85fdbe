"""SGLang servers as an engine: launched or attached, driven over HTTP."""
