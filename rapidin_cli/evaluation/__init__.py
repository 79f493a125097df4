"""How well influence predicts what retraining does: `rin evaluate`.

From outside: `evaluate` (retrieval, linear_datamodeling, counterfactual), `training.fine_tune`.
"""
