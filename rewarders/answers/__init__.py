"""Final answers of mathematics: read, compared and written in one canonical form, at a cost that is bounded beforehand."""
