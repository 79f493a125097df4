"""How well influence predicts the effect of retraining: `rin evaluate`.

From outside: `evaluate` (retrieval, linear_datamodeling, counterfactual), `training.fine_tune`.
"""
