"""The gradient spec: everything that decides what a cached row means."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rapidin_cli.errors import InputError

RowKind = Literal["sketch", "factors"]
SketchKind = Literal["tensorsketch", "oporp"]
Precision = Literal["int8", "float16", "sign", "int4"]
Captured = Literal["all", "linear"]


@dataclass(frozen=True)
class GradientSpec:
    """Settings of the `[gradient]` table; part of a cache's identity.

    Attributes:
        row: kind of row: `sketch`, K numbers, or `factors`, a low-rank approximation of each
            layer's gradient.
        sketch: `tensorsketch` (a block per layer) or `oporp` (the paper's procedure over
            the whole gradient).
        dimensions: K, numbers in a sketch row; an upper bound, reached up to rounding.
        rank: components of each layer in a factor row.
        projection: sides of factors longer than this are count-sketched to it; 0: never.
        precision: how the numbers are stored: `sign` is for sketches, `int4` for factors.
        seed: of all hashes, signs and permutations.
        layers: regular expression on module names (`re.search`); empty for all.
        capture: `all` that was trained, or the weights of `linear` layers alone, without what is
            tied to an embedding, which is what rin captured first.
        rounds: lambda, the rounds of row and column shuffling in `oporp`.
    """

    row: RowKind = "sketch"
    sketch: SketchKind = "tensorsketch"
    dimensions: int = 65_536
    rank: int = 4
    projection: int = 0
    precision: Precision = "int8"
    seed: int = 0
    layers: str = ""
    capture: Captured = "all"
    rounds: int = 20

    def __post_init__(self) -> None:
        choices = {
            "row": RowKind,
            "sketch": SketchKind,
            "precision": Precision,
            "capture": Captured,
        }
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

        if self.precision == ("int4" if self.row == "sketch" else "sign"):
            raise InputError(
                f"[gradient] precision = {self.precision!r} cannot be used with row = {self.row!r}",
                hint="correct rin.toml: sign is for sketch rows, int4 for factors",
            )
        if not 1 <= self.rank <= 64 or self.projection < 0:
            raise InputError(
                f"[gradient] rank = {self.rank}, projection = {self.projection}: rank must be 1 to "
                "64, projection 0 or more",
                hint="correct rin.toml",
            )

    def describe(self) -> str:
        """Say in a few words what a row is."""
        if self.row == "factors":
            cut = f", sides of {self.projection:,}" if self.projection else ""
            return f"factors, rank {self.rank}{cut}, {self.precision}"
        return f"{self.sketch}, {self.dimensions:,} dimensions, {self.precision}"

    def identity(self, *, linear: bool = False) -> dict[str, Any]:
        """The fields that change a row, as JSON: hashed into the cache-id.

        Args:
            linear: whether nothing but the weights of linear layers was trained.
        """
        fields = asdict(self)
        if linear or self.capture == "linear":  # as rows were named that knew nothing else
            del fields["capture"]
        unused = {"sketch": ("rank", "projection"), "factors": ("sketch", "dimensions", "rounds")}
        for name in unused[self.row]:
            del fields[name]
        if self.row == "sketch" and self.sketch != "oporp":
            del fields["rounds"]
        return {**fields, "loss": "sum of shifted next-token cross-entropy"}
