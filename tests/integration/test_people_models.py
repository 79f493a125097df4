"""People's own models from `rin cache` to an answer: full models, adapters, a Trainer's folder."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
)

from rapidin_cli import Project
from rapidin_cli.errors import InputError
from rapidin_cli.influence.options import Options
from rapidin_cli.influence.queries import Question
from rapidin_cli.models.loading import load_model
from tests.support import forked, tiny
from tests.support.architectures import adapted, check_rows, model_of

RIN = """
[data]
files = ["data.jsonl"]
template = "chat"
max_tokens = 64
[model]
dtype = "float32"
[gradient]
dimensions = 4096
[[checkpoints]]
name = "model"
path = "{path}"
"""


def folder_of(model: torch.nn.Module, root: Path) -> Path:
    """A project with a full model, or with an adapter on a base."""
    path = root / "model"
    if hasattr(model, "peft_config"):
        base = tiny.llama(tie_word_embeddings=False)
        base.save_pretrained(root / "base")
        model.peft_config["default"].base_model_name_or_path = str(root / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT, about saving embeddings
        model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    tiny.write_jsonl(root / "data.jsonl", tiny.rows(12))
    (root / "rin.toml").write_text(RIN.format(path="model"))
    return root


def full(kind: str) -> torch.nn.Module:
    return tiny.gpt2() if kind == "gpt2" else model_of(kind)


KINDS = ["gpt2", "gemma3_text", "phi3", "qwen3", "qwen3_moe", "llama4_text", "deepseek_v4"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_model_finds_a_row_by_itself(kind, tmp_path):
    root = folder_of(full(kind), tmp_path)
    done = forked.rin(root, "cache")
    assert done.returncode == 0, done.stderr
    lacks = kind == "deepseek_v4"  # the weights of its hyper-connections
    assert ("of the trained parameters not captured" in done.stderr) == lacks
    asked = ("--row", "data.jsonl:6", "--score", "cosine")
    answer = json.loads(forked.rin(root, "retrieve", *asked, "--json").stdout)
    [query] = answer["queries"]
    best = query["examples"][0]
    assert best["rows"][0]["line"] == 6
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert query["exact"]["forward_mode"]
    assert sum(value for _, value in best["training"]) == pytest.approx(best["score"], abs=1e-3)
    assert sum(best["tokens"]) == pytest.approx(best["score"], abs=1e-3)
    told = any("trained parameters could not be captured" in each for each in answer["warnings"])
    assert told == lacks


@pytest.mark.parametrize("kind", ["dora", "rslora", "with the output layer", "on the embedding"])
def test_an_adapter_finds_a_row_by_itself(kind, tmp_path):
    settings = {
        "dora": {"use_dora": True, "target_modules": "all-linear"},
        "rslora": {"use_rslora": True, "target_modules": "all-linear"},
        "with the output layer": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        "on the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    }[kind]
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
    root = folder_of(adapted(config), tmp_path)
    project = Project.open(root)
    project.cache()
    question = Question("q1", training_row="data.jsonl:6")
    answer = project.retrieve([question], Options(score="cosine"))
    best = answer["queries"][0]["examples"][0]
    assert best["rows"][0]["line"] == 6
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert not any("could not be captured" in warning for warning in answer["warnings"])


def test_an_adapter_on_a_four_bit_base_finds_a_row_by_itself(tmp_path):
    tiny.llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "whole")
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=four, device_map={"": "cpu"}
    )
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.write_jsonl(tmp_path / "data.jsonl", tiny.rows(12))
    (tmp_path / "rin.toml").write_text(RIN.format(path="model"))
    project = Project.open(tmp_path)
    check_rows(load_model(project.opened().checkpoint, "cpu"))
    project.cache()
    question = Question("q1", training_row="data.jsonl:6")
    best = project.retrieve([question], Options(score="cosine"))["queries"][0]["examples"][0]
    assert best["rows"][0]["line"] == 6
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert sum(value for _, value in best["training"]) == pytest.approx(1, abs=1e-3)


def test_a_merged_adapter_is_a_full_model(tmp_path):
    model = adapted(LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    root = folder_of(model.merge_and_unload(), tmp_path)
    project = Project.open(root)
    project.cache()
    assert project.opened().checkpoint.base is None


@pytest.fixture
def trained(tmp_path):
    """What a Trainer leaves: two checkpoints, its state, and no model above them."""
    root = folder_of(tiny.llama(), tmp_path)
    rows = [torch.arange(1, 20) + n for n in range(8)]
    data = [{"input_ids": row, "labels": row, "attention_mask": row.ge(0)} for row in rows]
    arguments = TrainingArguments(
        output_dir=str(root / "run"), max_steps=4, save_steps=2, report_to=[],
        per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(tiny.llama(), arguments, train_dataset=data, processing_class=tiny.tokenizer()).train()
    return root


def test_a_trainers_folder_is_named_and_its_checkpoints_work(trained):
    (trained / "rin.toml").write_text(RIN.format(path="run"))
    with pytest.raises(InputError, match="folder of a training run, with 2 checkpoints") as caught:
        Project.open(trained).opened()
    assert "run/checkpoint-4" in caught.value.hint
    (trained / "rin.toml").write_text(RIN.format(path="run/checkpoint-4"))
    done = forked.rin(trained, "cache")
    assert done.returncode == 0, done.stderr
    assert "12 cached" in done.stderr


def without(path: Path, part: str, new: str = "") -> None:
    """Leave tensors out of a file, or give them another name."""
    tensors = load_file(path)
    kept = {
        n.replace(part, new) if new else n: t for n, t in tensors.items() if new or part not in n
    }
    assert kept.keys() != tensors.keys()
    save_file(kept, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "new"), [("layers.1.self_attn.q_proj", ""), ("self_attn", "self_attention")]
)
def test_a_full_model_with_missing_tensors_is_refused(part, new, tmp_path):
    root = folder_of(tiny.llama(), tmp_path)
    without(root / "model/model.safetensors", part, new)
    with pytest.raises(InputError, match=r"are incomplete: .* lacks .*self_attn") as caught:
        load_model(Project.open(root).opened().checkpoint, "cpu")
    assert "save the checkpoint again" in caught.value.hint
    assert forked.rin(root, "cache").returncode == 4


@pytest.mark.parametrize(
    ("part", "new"), [("layers.1.self_attn.q_proj.lora_A", ""), ("lora_B", "lora_C")]
)
def test_an_adapter_with_missing_tensors_is_refused(part, new, tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    root = folder_of(adapted(config), tmp_path)
    without(root / "model/adapter_model.safetensors", part, new)
    with pytest.raises(InputError, match=r"are incomplete: .* lacks"):
        load_model(Project.open(root).opened().checkpoint, "cpu")


def test_an_adapter_on_an_adapter_is_refused(tmp_path):
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    root = folder_of(adapted(config), tmp_path)
    shutil.copytree(root / "model", root / "second")
    settings = json.loads((root / "second/adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "model"
    (root / "second/adapter_config.json").write_text(json.dumps(settings))
    (root / "rin.toml").write_text(RIN.format(path="second"))
    with pytest.raises(InputError, match="is itself an adapter"):
        Project.open(root).opened()


def test_an_activated_lora_is_refused_as_what_it_is(tmp_path):
    root = folder_of(adapted(LoraConfig(r=4, target_modules=["q_proj"])), tmp_path)
    settings = json.loads((root / "model/adapter_config.json").read_text())
    (root / "model/adapter_config.json").write_text(
        json.dumps({**settings, "alora_invocation_tokens": [5, 6]})
    )
    with pytest.raises(InputError, match="activated LoRA"):
        Project.open(root).opened()
