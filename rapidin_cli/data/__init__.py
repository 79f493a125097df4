"""Training data: from files to tokenised examples with labels.

From outside: `loading.load_dataset`, which returns a `Dataset` of `Example`s; `encoding.Encoder`;
`reading.read_rows` for rows as text.
"""
