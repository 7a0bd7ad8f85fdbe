"""The weight road: from the learner's snapshot through the publisher process to every receiver."""
