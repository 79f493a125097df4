"""Checkpoints: where they are, what they are (fingerprint), how they are loaded, how they weigh.

From outside: `checkpoints.resolve`, `fingerprints.Fingerprints`, `loading.load_model` and
`load_tokenizer`, `learning_rates.checkpoint_weights`.
"""
