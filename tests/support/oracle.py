"""The truth to compare with: plain loops over single examples, and the models for them."""

import torch
from torch import nn

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.gradients.capture.target import Target
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.spec import GradientSpec

CPU = torch.device("cpu")

EXACT = GradientSpec(dimensions=2**22)  # more than any tiny model has: nothing is hashed


def batch(vocabulary: int = 50) -> Batch:
    torch.manual_seed(5)
    ids = torch.zeros(3, max(LENGTHS), dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(1, vocabulary, (length,))
        labels[row, 3:length] = ids[row, 3:length]
    return Batch(ids, labels)


def one(whole: Batch, row: int) -> Batch:
    length = LENGTHS[row]
    return Batch(whole.input_ids[row : row + 1, :length], whole.labels[row : row + 1, :length])


def plain_loop(model: nn.Module, targets: list[Target], example: Batch):
    """Loss and the targets' gradients of one example: shifted cross-entropy, summed, masked."""
    weights = trained_by(targets)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    logits = model(input_ids=example.input_ids).logits[0]
    loss = torch.zeros(())
    for position in range(1, example.input_ids.shape[1]):
        label = example.labels[0, position]
        if label != IGNORED:
            loss = loss - torch.log_softmax(logits[position - 1], 0)[label]
    found = torch.autograd.grad(loss, weights, materialize_grads=True)
    return loss.detach(), gathered(targets, found)


def trained_by(targets: list[Target]) -> list[nn.Parameter]:
    return [parameter for target in targets for parameter in target.parameters]


def gathered(targets: list[Target], values) -> list[torch.Tensor]:
    """What belongs to the parameters of `trained_by`, as the targets' matrices."""
    known = {id(p): v for p, v in zip(trained_by(targets), values, strict=True)}
    return [target.gathered(lambda parameter: known[id(parameter)]) for target in targets]


LENGTHS = [12, 9, 5]
