"""The model before training as a checkpoint: what it is, what it costs, when it is asked."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rapidin_cli import Options, Project, Question
from rapidin_cli.errors import InputError
from rapidin_cli.gradients.passes import as_batch
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.models.learning_rates import checkpoint_weights
from rapidin_cli.models.loading import load_model
from rapidin_cli.work.worker import build_engine
from tests.support import forked, tiny

START = """
[[checkpoints]]
name = "start"
start = true
"""
ASKED = Question("q1", prompt="Where is the cat number 0?", response="In the park.")


def with_start(folder, *, base: str = ""):
    """Put the model before training into a project; after the other, as people may."""
    text = (folder / "rin.toml").read_text()
    text = text.replace("[gradient]", f"{START}[gradient]")
    if base:
        text = text.replace("[model]", f'[model]\nbase = "{base}"')
    (folder / "rin.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An adapter with rows and curvature, and its start."""
    folder = with_start(tiny.project(tmp_path_factory.mktemp("before"), 12))
    project = Project.open(folder)
    project.cache()
    list(project.curvature())
    return folder


def test_the_start_of_an_adapter_is_its_base(whole):
    project = Project.open(whole)
    opened = project.opened("start")
    assert opened.checkpoint.start
    assert opened.fingerprint != project.opened("tuned").fingerprint
    example = next(iter(opened.dataset.distinct))[0]
    engine = build_engine(opened.jobs("cpu", 1)[0])
    base = load_model(Checkpoint("base", whole / "base", None), "cpu")
    with torch.no_grad():
        batch = as_batch([example])
        logits = base(input_ids=batch.input_ids).logits[0, :-1]
        known = batch.labels[0, 1:] >= 0
        loss = torch.nn.functional.cross_entropy(logits[known], batch.labels[0, 1:][known])
    [losses] = engine.passes.backward(batch, lambda *_: None)
    torch.testing.assert_close(losses.mean(), loss, rtol=1e-5, atol=1e-5)
    layers = engine.layout.layers
    norm = engine(batch).norm[0]
    for layer, size in zip(layers, norm, strict=True):  # B is zero, so A's gradient is
        assert (size == 0) == layer.name.endswith("lora_A")


def test_the_start_of_a_full_model_is_the_base_that_rin_toml_names(tmp_path):
    folder = tiny.project(tmp_path / "project", 6, adapter=False)
    shutil.copytree(folder / "base", folder / "before")
    for file in (folder / "before").glob("tokenizer*"):
        file.unlink()
    before = tiny.llama(initializer_range=0.03)
    before.save_pretrained(folder / "before")
    with_start(folder, base="before")
    opened = Project.open(folder).opened("start")
    assert opened.checkpoint.path == folder / "before"
    assert opened.encoder.query("Where?", "There.").input_ids.any()  # by the other's tokenizer
    project = Project.open(folder)
    rows = {done.checkpoint: done.snapshot for done in project.cache()}
    assert list(rows) == ["tuned", "start"], "the one that is asked comes first"
    assert rows["start"].commit.cache != rows["tuned"].commit.cache


def test_with_curvature_both_are_asked_and_weigh_the_same(whole):
    project = Project.open(whole)
    options = Options(exact=4)
    found = {
        name: project.retrieve([ASKED], options, checkpoint=name) for name in ("start", "tuned")
    }
    both = project.retrieve([ASKED], options, checkpoints=[])
    assert both["score"]["name"] == "ekfac"
    assert [(c["name"], c["weight"]) for c in both["checkpoints"]] == [
        ("start", 0.5),
        ("tuned", 0.5),
    ]
    assert not any("learning_rate" in told for told in both["warnings"])
    totals = {
        name: {e["digest"]: e["score"] for e in report["queries"][0]["examples"]}
        for name, report in found.items()
    }
    shown = both["queries"][0]["examples"]
    assert shown
    common = [e for e in shown if all(e["digest"] in found for found in totals.values())]
    assert len(common) > len(shown) // 2
    for example in common:
        parts = [found[example["digest"]] for found in totals.values()]
        assert example["score"] == pytest.approx(sum(parts) / 2, rel=1e-3)


def test_by_default_the_last_is_asked_alone(whole):
    for score in ("auto", "dot"):
        report = Project.open(whole).retrieve([ASKED], Options(score=score, exact=0))
        assert [c["name"] for c in report["checkpoints"]] == ["tuned"]


def test_what_its_rows_cost_is_said_beforehand(tmp_path):
    folder = with_start(tiny.project(tmp_path / "project", 6))
    done = forked.rin(folder, "cache", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "tuned: 6 rows to compute" in done.stderr
    assert "start: 6 rows to compute" in done.stderr
    assert done.stderr.index("tuned: 6") < done.stderr.index("start: 6")


@pytest.mark.parametrize("changed", ["dora", "pissa", "base"])
def test_a_start_that_cannot_be_had_is_refused_by_name(tmp_path, changed):
    folder = with_start(tiny.project(tmp_path / "project", 4, adapter=changed != "base"))
    if changed == "dora":
        config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
        model = get_peft_model(tiny.llama(), config)
        model.peft_config["default"].base_model_name_or_path = "base"
        model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    elif changed == "pissa":
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "pissa"}))
    said = {"dora": "more than factors", "pissa": "began as pissa", "base": "does not name that"}
    with pytest.raises(InputError, match=said[changed]) as caught:
        load_model(Project.open(folder).opened("start").checkpoint, "cpu")
    assert "'start'" in caught.value.message
    assert "rin.toml" in caught.value.hint


def test_init_proposes_it_where_it_can_be_had(tmp_path):
    folder = tiny.project(tmp_path / "project", 4)
    (folder / "rin.toml").unlink()
    done = forked.rin(folder, "init", "--yes")
    assert done.returncode == 0, done.stderr
    assert "start: the model before training" in done.stderr + done.stdout
    names = [(c.name, c.start) for c in Project.open(folder).config.checkpoints]
    assert names == [("start", True), ("adapter", False)]


def test_the_start_weighs_as_much_as_the_others_on_average(tmp_path):
    names, folders = ["start", "one", "two"], [tmp_path] * 3
    weights, source = checkpoint_weights(names, [0, 3, 1], folders, [True, False, False])
    assert weights == pytest.approx([1 / 3, 1 / 2, 1 / 6])
    assert "rin.toml" in source
    assert checkpoint_weights(["start", "one"], [0, 0], folders[:2], [True, False])[0] == [0.5, 0.5]
