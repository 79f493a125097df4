import torch

from rapidin_cli.gradients.compress.oporp import Oporp

CPU = torch.device("cpu")


def test_the_shuffle_is_a_permutation_that_mixes():
    oporp = Oporp(5000, 64, 20, 0, CPU)
    positions = torch.arange(oporp.padded, dtype=torch.float32)[None]
    shuffled = oporp.shuffle(positions)[0]
    assert sorted(shuffled.tolist()) == positions[0].tolist()
    # Neighbours do not stay together: that is what the rounds are for.
    together = ((shuffled[1:] - shuffled[:-1]).abs() == 1).float().mean()
    assert together < 0.02


def test_rounds_matter():
    """One fixed matrix view would collapse twenty rounds into one."""
    positions = torch.arange(4096, dtype=torch.float32)[None]
    orders = {
        rounds: tuple(Oporp(4096, 64, rounds, 0, CPU).shuffle(positions)[0].tolist())
        for rounds in (1, 2, 20)
    }
    assert len(set(orders.values())) == 3


def test_compression_is_permute_sign_and_group_sum():
    oporp = Oporp(500, 32, 5, 0, CPU)
    vector = torch.randn(1, 500)
    padded = torch.nn.functional.pad(vector, (0, oporp.padded - 500))
    order = oporp.shuffle(torch.arange(oporp.padded, dtype=torch.float32)[None])[0].long()
    expected = torch.zeros(32)
    for position, source in enumerate(order.tolist()):
        expected[position // oporp.group] += padded[0, source] * oporp._sign[position]
    torch.testing.assert_close(oporp(vector)[0], expected, rtol=1e-4, atol=1e-4)


def test_inner_products_are_unbiased():
    torch.manual_seed(0)
    a = torch.randn(600)
    b = 0.5 * a + torch.randn(600)
    exact = a @ b
    values = []
    for seed in range(1000):
        rows = Oporp(600, 32, 3, seed, CPU)(torch.stack([a, b]))
        values.append(rows[0] @ rows[1])
    estimates = torch.stack(values)
    assert (estimates.mean() - exact).abs() < 4 * estimates.std() / len(values) ** 0.5


def test_padding_stays_small():
    """The released code pads 4.2 million numbers to 16.8 million."""
    oporp = Oporp(4_200_000, 65_536, 1, 0, CPU)
    assert oporp.padded < 1.05 * 4_200_000
