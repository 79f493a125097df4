"""The paper's compression: OPORP with rounds of row and column shuffling.

RapidIn (Lin et al., ACL 2024, section 3.3): shuffle the gradient vector, flip random
signs, sum groups of D / K neighbours (OPORP, Li & Li 2023). A permutation of length D is
never stored: each of lambda rounds shuffles the rows of one matrix view of the vector and
the columns of another; as in the authors' code, every round draws its own views from the
prime factors of D (with one fixed view all rounds would collapse into one).
"""

import numpy as np
import torch

from rapidin_cli.gradients.compress.hashing import permutation, signs

_LARGEST_FACTOR = 13


class Oporp:
    """Compresses (B, D) vectors to (B, K).

    Args:
        length: D, elements of the whole gradient.
        dimensions: K.
        rounds: lambda.
        seed: names all permutations and signs.
        device: where they are kept.
    """

    def __init__(
        self, length: int, dimensions: int, rounds: int, seed: int, device: torch.device
    ) -> None:
        self.length = length
        self.dimensions = dimensions
        self.group = _smooth(max(1, -(-length // dimensions)))
        self.padded = self.group * dimensions
        factors = _prime_factors(self.padded)
        self._rounds = []
        for number in range(rounds):
            order = permutation(len(factors), seed, "oporp", number, "factors")
            mixed = [factors[i] for i in order]
            # A quarter to a half of the factors, so that neither side is trivially short.
            row_cut, column_cut = len(mixed) // 4 + 1, len(mixed) // 2
            rows = int(np.prod(mixed[:row_cut], dtype=np.int64))
            columns = int(np.prod(mixed[row_cut : row_cut + column_cut], dtype=np.int64))
            self._rounds.append(
                (
                    torch.from_numpy(permutation(rows, seed, "oporp", number, "rows")).to(device),
                    torch.from_numpy(permutation(columns, seed, "oporp", number, "columns")).to(
                        device
                    ),
                )
            )
        self._sign = torch.from_numpy(signs(self.padded, seed, "oporp")).to(device)

    def shuffle(self, vectors: torch.Tensor) -> torch.Tensor:
        """Permute padded vectors (B, D'): the same permutation for each."""
        batch = vectors.shape[0]
        for rows, columns in self._rounds:
            vectors = vectors.view(batch, len(rows), -1)[:, rows].reshape(batch, -1)
            vectors = vectors.view(batch, -1, len(columns))[:, :, columns].reshape(batch, -1)
        return vectors

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """Compress (B, D) float32 vectors to (B, K)."""
        padded = torch.nn.functional.pad(vectors, (0, self.padded - self.length))
        mixed = self.shuffle(padded) * self._sign
        return mixed.view(len(vectors), self.dimensions, self.group).sum(2)


def _smooth(number: int) -> int:
    """Return the next number without a large prime factor: many factors give many views."""
    while max(_prime_factors(number), default=1) > _LARGEST_FACTOR:
        number += 1
    return number


def _prime_factors(number: int) -> list[int]:
    factors = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors
