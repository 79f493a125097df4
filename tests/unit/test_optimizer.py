"""The optimizer's second moments, against the live optimizer of a real Trainer."""

import pickle

import pytest
import torch
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer, TrainingArguments

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.directions import LayerGradient
from rapidin_cli.gradients.optimizer_state import has_second_moments, second_moments
from rapidin_cli.gradients.passes import Passes
from rapidin_cli.influence.preconditioners import Adam
from rapidin_cli.models.checkpoints import Checkpoint
from tests.support import tiny
from tests.support.examples import EXAMPLES, MODELS
from tests.support.oracle import CPU


class Rows(TorchDataset):
    def __len__(self):
        return len(EXAMPLES)

    def __getitem__(self, place):
        ids = torch.from_numpy(EXAMPLES[place].input_ids[:6].astype("int64"))
        return {"input_ids": ids, "labels": ids}


def train(model, folder, **settings):
    """Train with the Hugging Face Trainer, which saves a checkpoint after two steps."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.01,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows())
    trainer.train()
    return trainer, Checkpoint("tuned", folder / "checkpoint-2", None)


@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_the_trainers_optimizer(name, tmp_path):
    model = MODELS[name]()
    trainer, checkpoint = train(model, tmp_path)
    states = {id(p): state for p, state in trainer.optimizer.optimizer.state.items()}
    passes = Passes(model, "", CPU, "float32")
    found = second_moments(checkpoint, passes)

    def expected_of(parameter):
        state = states[id(parameter)]
        return state["exp_avg_sq"] / (1 - 0.999 ** state["step"])

    for target, moment in zip(passes.targets, found, strict=True):
        expected = target.gathered(expected_of)
        assert moment.shape == (target.layer.out_features, target.layer.in_features)
        torch.testing.assert_close(moment, expected)
        assert moment.any()


def test_one_group_is_in_the_models_order(tmp_path):
    model = tiny.llama()
    passes = Passes(tiny.llama(), "", CPU, "float32")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.5))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    found = second_moments(Checkpoint("", tmp_path, None), passes)
    places = {name: n for n, (name, _) in enumerate(model.named_parameters())}
    ours = {id(p): name for name, p in passes.model.named_parameters()}

    def expected(parameter):
        return torch.full(parameter.shape, float((places[ours[id(parameter)]] + 1) ** 2))

    for target, moment in zip(passes.targets, found, strict=True):
        torch.testing.assert_close(moment, target.gathered(expected))


def test_the_direction_is_the_gradient_over_the_root():
    torch.manual_seed(0)
    moment = torch.rand(4, 6)
    moment[0] = 0  # never had a gradient
    gradient = torch.randn(3, 4, 6)
    root = moment.sqrt()
    expected = gradient / (root + 0.01 * root.mean())
    torch.testing.assert_close(
        Adam([moment], 0.01, CPU).change(0, LayerGradient.of_matrix(gradient)), expected
    )


class Code:
    def __reduce__(self):
        return print, ("run",)


def state_of(optimizer_class, model):
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda _: pickle.dumps(Code()), "contains more than tensors|cannot be read"),
        (lambda _: b"", "cannot be read as an optimizer's state"),
        (lambda _: {"param_groups": 3}, "cannot be read as an optimizer's state"),
        (lambda _: {"code": Code()}, "runs no code from files"),
        (lambda m: state_of(torch.optim.Adagrad, m), r"not the state of Adam.*has step, sum"),
        (lambda m: state_of(torch.optim.SGD, m), "not the state of Adam.*has nothing"),
        (
            lambda _: state_of(torch.optim.AdamW, tiny.llama(hidden_size=16)),
            "belongs to another model",
        ),
        (
            lambda _: state_of(torch.optim.AdamW, tiny.llama(num_hidden_layers=1)),
            "has 11 parameters",
        ),
    ],
)
def test_other_files_are_refused(content, sentence, tmp_path, capsys):
    model = tiny.llama()
    made = content(model)
    path = tmp_path / "optimizer.pt"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        torch.save(made, path)
    with pytest.raises(InputError, match=sentence) as caught:
        second_moments(Checkpoint("", tmp_path, None), Passes(model, "", CPU, "float32"))
    fits = "another model" in sentence or "parameters" in sentence  # as far as is known at once
    assert has_second_moments(Checkpoint("", tmp_path, None)) == fits
    assert "rin retrieve" in caught.value.hint
    assert capsys.readouterr().out == ""


def test_without_a_file_it_says_so(tmp_path):
    with pytest.raises(InputError, match="has no optimizer"):
        second_moments(Checkpoint("", tmp_path, None), Passes(tiny.llama(), "", CPU, "float32"))
