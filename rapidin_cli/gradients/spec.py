"""The gradient spec: everything that decides what a cached row means."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rapidin_cli.errors import InputError

RowKind = Literal["sketch"]
SketchKind = Literal["tensorsketch", "oporp"]
Precision = Literal["int8", "float16", "sign"]


@dataclass(frozen=True)
class GradientSpec:
    """Settings of the `[gradient]` table; part of a cache's identity.

    Attributes:
        row: kind of row. `sketch` is the only one so far.
        sketch: `tensorsketch` (a block per layer) or `oporp` (the paper's procedure over
            the whole gradient).
        dimensions: K, numbers in a row; an upper bound that is met up to rounding.
        precision: how those numbers are stored.
        seed: of all hashes, signs and permutations.
        layers: regular expression on module names (`re.search`); empty for all.
        rounds: lambda, the rounds of row and column shuffling in `oporp`.
    """

    row: RowKind = "sketch"
    sketch: SketchKind = "tensorsketch"
    dimensions: int = 65_536
    precision: Precision = "int8"
    seed: int = 0
    layers: str = ""
    rounds: int = 20

    def __post_init__(self) -> None:
        choices = {"row": RowKind, "sketch": SketchKind, "precision": Precision}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"[gradient] {name} = {getattr(self, name)!r} is not one of "
                    f"{', '.join(get_args(kind))}",
                    hint="correct rin.toml",
                )
        if not 64 <= self.dimensions <= 2**26 or self.dimensions % 8:
            raise InputError(
                f"[gradient] dimensions = {self.dimensions} is not a multiple of 8 between 64 "
                f"and {2**26}",
                hint="correct rin.toml",
            )

    def row_bytes(self) -> int:
        """Bytes of a row's numbers before compression, norms left out."""
        bits = {"int8": 8, "float16": 16, "sign": 1}[self.precision]
        return self.dimensions * bits // 8

    def identity(self) -> dict[str, Any]:
        """The fields that change a row, as JSON: hashed into the cache-id."""
        fields = asdict(self)
        if self.sketch != "oporp":
            del fields["rounds"]
        return {**fields, "loss": "sum of shifted next-token cross-entropy"}
