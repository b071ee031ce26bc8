"""Measuring models: accuracy, cost, and what the paper publishes of both."""
