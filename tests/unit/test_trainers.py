"""Settings of trainers, found where they leave them; pickles are read and never run."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest

from rapidin_cli.setup.inert import read_arguments
from rapidin_cli.setup.search import survey
from rapidin_cli.setup.trainers import find_training

AXOLOTL = """\
base_model: HuggingFaceTB/SmolLM2-135M
datasets:
  - path: data/train.jsonl
    type: {kind}
sequence_len: 2048
train_on_inputs: {inputs}
output_dir: ./out
"""
FACTORY = """\
model_name_or_path: base
stage: sft
dataset: support
template: {template}
cutoff_len: 512
output_dir: out
{more}
"""


def searched(folder, checkpoint, shape):
    return find_training(folder, [checkpoint], shape, survey(folder).configs)


def values(found):
    return {name: value for name, (value, _) in found.settings.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("shape", "settings", "expected"),
    [
        ("messages", {}, {"max_tokens": 1024, "learn": "all"}),
        ("conversations", {"max_length": 256}, {"max_tokens": 256, "learn": "all"}),
        ("messages", {"assistant_only_loss": True}, {"max_tokens": 1024, "learn": "assistant"}),
        ("completion", {}, {"max_tokens": 1024, "learn": "assistant"}),
        ("completion", {"completion_only_loss": False}, {"max_tokens": 1024, "learn": "all"}),
        (
            "text",
            {"dataset_text_field": "body", "max_length": None},
            {"max_tokens": 1_000_000, "text_field": "body"},
        ),
        (
            "messages",
            {"truncation_mode": "keep_end"},
            {"max_tokens": 1024, "learn": "all", "cut": "left"},
        ),
    ],
)
def test_the_arguments_of_trl(tmp_path, shape, settings, expected):
    import torch
    from trl import SFTConfig

    config = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], **settings)
    checkpoint = tmp_path / "out/checkpoint-2"
    checkpoint.mkdir(parents=True)
    torch.save(config, checkpoint / "training_args.bin")
    found = find_training(tmp_path, [checkpoint], shape)
    assert found.trainer == "TRL's SFTTrainer"
    assert values(found) == expected


@pytest.mark.filterwarnings("ignore")
def test_preference_training_and_packs_are_named(tmp_path):
    import torch
    from trl import DPOConfig, SFTConfig

    plain = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "report_to": []}
    torch.save(DPOConfig(**plain), tmp_path / "training_args.bin")
    found = find_training(tmp_path, [tmp_path], "messages")
    assert not found.settings
    assert "DPOConfig" in found.notes[0]
    packed = SFTConfig(**plain, packing=True, packing_strategy="wrapped")
    torch.save(packed, tmp_path / "training_args.bin")
    assert "wrapped" in " ".join(find_training(tmp_path, [tmp_path], "text").notes)


@pytest.mark.filterwarnings("ignore")
def test_unsloth_masks_without_a_trace(tmp_path):
    import torch
    from trl import SFTConfig

    config = SFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[])
    torch.save(config, tmp_path / "training_args.bin")
    (tmp_path / "README.md").write_text("---\ntags:\n- unsloth\n- trl\n---\n")
    found = find_training(tmp_path, [tmp_path], "conversations")
    assert "train_on_responses_only" in found.notes[0]


class Boom:
    def __reduce__(self):
        return os.mkdir, ("touched",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "training_args.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("training_args/data.pkl", pickle.dumps(Boom()))
    found = read_arguments(path)
    assert not Path("touched").exists()
    assert found is not None
    assert found.kind.endswith(".mkdir")
    assert find_training(tmp_path, [tmp_path], "messages") is None


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense", pickle.dumps({"a": 1})])
def test_what_is_no_record_of_arguments_is_none(tmp_path, content):
    path = tmp_path / "training_args.bin"
    path.write_bytes(content)
    assert read_arguments(path) is None
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
    assert read_arguments(path) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            AXOLOTL.format(kind="chat_template", inputs="false"),
            {"max_tokens": 2048, "cut": "drop", "learn": "assistant", "template": "chat"},
        ),
        (
            AXOLOTL.format(kind="alpaca", inputs="true") + "excess_length_strategy: truncate\n",
            {
                **{"max_tokens": 2048, "cut": "right", "learn": "all"},
                **{"template": "alpaca", "join": "tokens"},
            },
        ),
        (
            FACTORY.format(template="qwen", more=""),
            {"max_tokens": 512, "join": "tokens", "learn": "assistant", "template": "chat"},
        ),
        (
            FACTORY.format(template="qwen", more="mask_history: true"),
            {"max_tokens": 512, "join": "tokens", "learn": "last", "template": "chat"},
        ),
        (
            FACTORY.format(template="default", more="train_on_prompt: true"),
            {"max_tokens": 512, "join": "tokens", "learn": "all"},
        ),
    ],
)
def test_configurations_in_yaml(tmp_path, text, expected):
    checkpoint = tmp_path / "out/checkpoint-5"
    checkpoint.mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/train.yaml").write_text(text)
    (tmp_path / "configs/other.yaml").write_text(text.replace("out", "elsewhere"))
    (tmp_path / "docker-compose.yml").write_text("services: {}\n")
    found = searched(tmp_path, checkpoint, "alpaca")
    assert values(found) == expected
    assert found.source.name == "train.yaml"


def test_axolotl_puts_its_configuration_into_the_card(tmp_path):
    config = AXOLOTL.format(kind="chat_template", inputs="false")
    card = f"<details><summary>See axolotl config</summary>\n\n```yaml\n{config}```\n</details>"
    (tmp_path / "README.md").write_text(card)
    found = find_training(tmp_path, [tmp_path], "messages")
    assert found.trainer == "axolotl"
    assert values(found)["cut"] == "drop"


def test_llama_factory_s_alpaca_is_one_text(tmp_path):
    (tmp_path / "sft.yaml").write_text(FACTORY.format(template="alpaca", more=""))
    template = values(searched(tmp_path, tmp_path / "out", "alpaca"))["template"]
    assert template.endswith("### Instruction:\n{prompt}\n\n### Response:\n")


def test_what_rin_does_not_follow_is_named(tmp_path):
    text = AXOLOTL.format(kind="chat_template", inputs="false") + "rl: dpo\n"
    (tmp_path / "a.yaml").write_text(text)
    assert "rl: dpo" in searched(tmp_path, tmp_path / "out", "messages").notes[0]
    text = AXOLOTL.format(kind="chat_template\n    train_on_eos: all", inputs="false")
    (tmp_path / "a.yaml").write_text(text)
    assert "train_on_eos" in searched(tmp_path, tmp_path / "out", "messages").notes[0]
    (tmp_path / "a.yaml").unlink()
    assert searched(tmp_path, tmp_path / "out", "messages") is None
