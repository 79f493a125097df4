"""Checkpoints: their folders, their fingerprints, how they are loaded, how much each weighs.

From outside: `checkpoints.resolve`, `fingerprints.Fingerprints`, `loading.load_model` and
`load_tokenizer`, `learning_rates.checkpoint_weights`.
"""
