"""How well influence predicts what retraining does."""
