"""Final answers in mathematics: parsing, comparison and canonical texts, at a cost that is bounded beforehand."""
