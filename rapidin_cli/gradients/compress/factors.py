"""Low-rank factors of a layer's gradient, from its inputs and output gradients.

G = sum_t d_t x_t^T is nearly of low rank (LoRIF, arXiv 2601.21929, keeps the same), and a
score with curvature is a small difference that a random sketch drowns and factors keep
(DESIGN 4.2). G itself is not formed: block power iteration (Halko, Martinsson & Tropp 2011,
algorithm 4.4) needs a few products with its (T, I) and (T, O) sides.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from rapidin_cli.gradients.capture.sides import Side, WideSide, floats
from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.compress.hashing import Bags, CountSketch
from rapidin_cli.gradients.compress.tensorsketch import ghost_norm
from rapidin_cli.gradients.layout import RowLayout
from rapidin_cli.gradients.scaling import divided
from rapidin_cli.gradients.spec import GradientSpec

_OVERSAMPLE = 4
_ITERATIONS = 2
# A matrix with so few rows is decomposed through their Gram matrix, exactly.
_FEW = 16

Factors = tuple[torch.Tensor, torch.Tensor]
Product = Callable[[torch.Tensor], torch.Tensor]


def factors_of_pass(x: torch.Tensor, d: torch.Tensor, rank: int) -> Factors:
    """Return the best rank-c approximation of G = sum_t d_t x_t^T.

    Args:
        x, d: (B, T, I) and (B, T, O) float32.
        rank: c.

    Returns:
        u (B, c, O), orthogonal and as long as the singular values, and v (B, c, I),
        orthonormal; G is nearly the sum of u_c v_c^T. Components beyond G's rank are zero.
    """
    if min(d.shape[2], x.shape[2]) <= _FEW:
        return factors_of_matrix(d.mT @ x, rank)
    return _factors(
        lambda rows: rows @ d.mT @ x, lambda rows: rows @ x.mT @ d, _spread(d, rank), rank
    )


def factors_of_wide(x: torch.Tensor, d: WideSide, rank: int) -> Factors:
    """Do the same as `factors_of_pass` where d is as wide as a vocabulary."""
    if x.shape[2] <= _FEW:
        return factors_of_matrix(d.combined(x.mT).mT, rank)
    return _factors(
        lambda rows: d.along(rows.mT).mT @ x,
        lambda rows: d.combined(rows @ x.mT),
        d.combined(_mix(d.shape[1], rank).to(x.device).expand(len(x), -1, -1)),
        rank,
    )


def factors_of_matrix(gradient: torch.Tensor, rank: int) -> Factors:
    """Do the same as `factors_of_pass` for a gradient (B, O, I) that already exists."""
    out, inner = gradient.shape[1:]
    if out > inner:
        v, u = factors_of_matrix(gradient.mT, rank)
        size = torch.linalg.vector_norm(v, dim=2, keepdim=True)
        return u * size, v / torch.where(size > 0, size, 1.0)
    if out <= _FEW:
        return _of_few(None, gradient, rank)
    return _factors(
        lambda rows: rows @ gradient,
        lambda rows: rows @ gradient.mT,
        _spread(gradient.mT, rank),
        rank,
    )


def _spread(vectors: torch.Tensor, rank: int) -> torch.Tensor:
    """Random combinations, of a fixed seed, of (B, n, O) vectors."""
    return _mix(vectors.shape[1], rank).to(vectors.device) @ vectors


def _mix(count: int, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rank + _OVERSAMPLE, count, generator=generator)


def _factors(times: Product, transposed: Product, start: torch.Tensor, rank: int) -> Factors:
    basis = _orthonormal(start)
    for _ in range(_ITERATIONS):
        basis = _orthonormal(transposed(times(basis)))
    return _of_few(basis, times(basis), rank)


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    """Orthonormalise few long rows (B, w, n); null directions become zero rows."""
    rows = rows / torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True).clamp_min(1e-30)
    for _ in range(2):  # the second time fixes what rounding left
        values, vectors = _gram(rows)
        kept = values > 1e-10 * values[:, -1:].clamp_min(1e-30)
        inverse = torch.where(kept, values.clamp_min(1e-30).rsqrt(), 0.0)
        rows = (vectors * inverse[:, None]).mT.float() @ rows
    return rows


def _gram(rows: torch.Tensor) -> Factors:
    """Eigenvalues, ascending, and eigenvectors of rows rows^T (B, w, w), float64.

    In float32 components below a thirtieth of the largest would drown in its rounding,
    since both sides are squared twice.
    """
    wide = rows.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    return values, vectors


def _of_few(basis: torch.Tensor | None, rows: torch.Tensor, rank: int) -> Factors:
    """Decompose basis^T rows; `basis` (B, w, O) is orthonormal, None for the unit matrix."""
    top = _gram(rows)[1][:, :, -rank:].flip(2).mT.float()
    v = top @ rows
    size = torch.linalg.vector_norm(v, dim=2, keepdim=True)
    v = v / torch.where(size > 0, size, 1.0)
    u = (top if basis is None else top @ basis) * size
    missing = (0, 0, 0, rank - u.shape[1])
    return F.pad(u, missing), F.pad(v, missing)


class FactorMaker:
    """Keeps `rank` components of each layer's gradient, all u and then all v.

    Sides longer than `spec.projection` are count-sketched to it first. It makes rows, and
    what rows are multiplied by (of a higher rank), alike.
    """

    def __init__(
        self, targets: list[Target], spec: GradientSpec, device: torch.device, rank: int
    ) -> None:
        layers = tuple(target.layer for target in targets)
        self._rank = rank
        sides = RowLayout(spec, layers, ()).sides
        self._widths = [rank * sum(pair) for pair in sides]
        self.layout = RowLayout(spec, layers, tuple(self._widths))
        self.numbers = self.layout.dimensions
        self._device = device
        self._hashes = [
            (
                _hash(layer.out_features, spec, device, layer.name, "out"),
                _hash(layer.in_features, spec, device, layer.name, "in"),
            )
            for layer in layers
        ]
        self._pieces = {
            number: _sketch(target.layer.out_features, spec, target.layer.name, "out").pieces(
                device
            )
            for number, target in enumerate(targets)
            if target.wide and self._hashes[number][0] is not None
        }
        self._starts = [sum(self._widths[:n]) for n in range(len(layers))]

    def start(self, batch: int) -> None:
        """See `engine.Maker.start`."""
        self._rows = torch.zeros(batch, self.layout.dimensions, device=self._device)
        self._norms = torch.zeros(batch, len(self._widths), device=self._device)

    def add(self, number: int, x: torch.Tensor, d: Side, divisor: torch.Tensor | None) -> None:
        """See `engine.Maker.add`."""
        x, d = floats(x, d)
        if isinstance(d, WideSide):
            self._add_wide(number, x, d, divisor)
            return
        if min(d.shape[2], x.shape[2]) <= _FEW:
            self.add_matrix(number, d.mT @ x, divisor)
            return
        out, inner = self._hashes[number]
        factors = factors_of_pass(_hashed(x, inner), _hashed(d, out), self._rank)
        self._put(number, factors, ghost_norm(x, d), divisor)

    def _add_wide(
        self, number: int, x: torch.Tensor, d: WideSide, divisor: torch.Tensor | None
    ) -> None:
        """Do the same with one row after the other, so that its numbers may be kept."""
        pieces, hashed = self._pieces.get(number), _hashed(x, self._hashes[number][1])
        parts, norms = [], []
        for row in range(len(x)):
            some, side = slice(row, row + 1), d.pick(slice(row, row + 1)).kept()
            if pieces is None:
                parts.append(factors_of_wide(hashed[some], side, self._rank))
            else:
                narrow, _ = side.sketched(pieces)
                parts.append(factors_of_pass(hashed[some], narrow, self._rank))
            norms.append(ghost_norm(x[some], side))
        u, v = zip(*parts, strict=True)
        self._put(number, (torch.cat(u), torch.cat(v)), torch.cat(norms), divisor)

    def add_matrix(self, number: int, gradient: torch.Tensor, divisor: torch.Tensor | None) -> None:
        """See `engine.Maker.add_matrix`."""
        out, inner = self._hashes[number]
        norm = torch.linalg.vector_norm(gradient, dim=(1, 2))
        hashed = _hashed(_hashed(gradient, inner).mT, out).mT
        self._put(number, factors_of_matrix(hashed, self._rank), norm, divisor)

    def _put(
        self, number: int, factors: Factors, norm: torch.Tensor, divisor: torch.Tensor | None
    ) -> None:
        u, v = factors
        start = self._starts[number]
        row = torch.cat([divided(u, norm, divisor).flatten(1), v.flatten(1)], 1)
        self._rows[:, start : start + self._widths[number]] = row
        self._norms[:, number] = norm

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `engine.Maker.finish`."""
        return self._rows, self._norms


def _hash(features: int, spec: GradientSpec, device: torch.device, *key: str) -> Bags | None:
    if not spec.projection or features <= spec.projection:
        return None
    return _sketch(features, spec, *key).bags(device, torch.float32)


def _sketch(features: int, spec: GradientSpec, *key: str) -> CountSketch:
    return CountSketch.make(features, spec.projection, spec.seed, *key)


def _hashed(values: torch.Tensor, bags: Bags | None) -> torch.Tensor:
    """Count-sketch the last axis, (B, T, n) -> (B, T, p)."""
    if bags is None:
        return values
    flat = bags(values.reshape(-1, values.shape[-1]).t()).t()
    return flat.view(*values.shape[:-1], -1)
