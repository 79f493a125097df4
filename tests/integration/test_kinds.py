"""Every kind of checkpoint: loaded as it was trained, to the logit, or refused as what it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from rapidin_cli import Project
from rapidin_cli.errors import InputError
from rapidin_cli.models.checkpoints import resolve
from rapidin_cli.models.fingerprints import Fingerprints
from rapidin_cli.models.loading import load_model
from rapidin_cli.work.caching import CachingProgress
from tests.support import forked, tiny
from tests.support.architectures import COMMON

IDS = torch.arange(20)[None]
EVERY = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
QUERY = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A tied and an untied model."""
    folder = tmp_path_factory.mktemp("bases")
    for name, tied in (("tied", True), ("untied", False)):
        tiny.llama(tie_word_embeddings=tied).save_pretrained(folder / name)
    return folder


def tune(base: Path, config: LoraConfig, size: int = 400) -> torch.nn.Module:
    """An adapter of which every trained weight has moved from where it began."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    if size != 400:
        model.resize_token_embeddings(size)
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted.eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def loaded(folder: Path, name: str = "model") -> torch.nn.Module:
    return load_model(resolve(folder, "tuned", name, ""), "cpu")


ADAPTERS = {
    "LoRA": (EVERY, "tied", 400),
    "gaussian": ({**EVERY, "init_lora_weights": "gaussian"}, "tied", 400),
    "rsLoRA": ({**EVERY, "use_rslora": True}, "tied", 400),
    "DoRA": ({**EVERY, "use_dora": True}, "tied", 400),
    "PiSSA": ({**EVERY, "init_lora_weights": "pissa"}, "tied", 400),
    "OLoRA": ({**EVERY, "init_lora_weights": "olora"}, "tied", 400),
    "EVA": ({**EVERY, "init_lora_weights": "eva"}, "tied", 400),
    "orthogonal": ({**EVERY, "init_lora_weights": "orthogonal"}, "tied", 400),
    "saved head": ({**QUERY, "modules_to_save": ["lm_head"]}, "untied", 400),
    "saved embeddings": ({**QUERY, "modules_to_save": ["embed_tokens"]}, "tied", 400),
    "both, tied": ({**QUERY, "modules_to_save": ["embed_tokens", "lm_head"]}, "tied", 400),
    "both, untied": ({**QUERY, "modules_to_save": ["embed_tokens", "lm_head"]}, "untied", 400),
    "single tokens": ({**EVERY, "trainable_token_indices": [4, 7]}, "tied", 400),
    "more tokens": (EVERY, "tied", 403),
    "more tokens, untied": (EVERY, "untied", 408),
    "more tokens, both saved": (
        {**QUERY, "modules_to_save": ["embed_tokens", "lm_head"]}, "untied", 403,
    ),
    "more tokens, embeddings saved": ({**QUERY, "modules_to_save": ["embed_tokens"]}, "tied", 403),
    "more tokens, only they trained": (
        {**EVERY, "trainable_token_indices": {"embed_tokens": [400, 401, 402]}}, "tied", 403,
    ),
    "more tokens, a factor on them": (
        {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}, "tied", 403,
    ),
    "fewer tokens": (EVERY, "untied", 390),
}  # fmt: skip


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_has_the_logits_that_it_had_in_training(kind, bases, tmp_path):
    settings, base, size = ADAPTERS[kind]
    model = tune(bases / base, LoraConfig(**settings), size)
    model.save_pretrained(tmp_path / "model")
    again = loaded(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(again), logits(loaded(tmp_path)))


def test_a_named_adapter_lies_one_folder_below(bases, tmp_path):
    model = tune(bases / "tied", LoraConfig(**EVERY))
    other = LoraConfig(**EVERY, init_lora_weights=False)
    model.add_adapter("sft", other)
    model.set_adapter("sft")
    model.peft_config["sft"].base_model_name_or_path = str(bases / "tied")
    model.save_pretrained(tmp_path / "out", selected_adapters=["sft"])
    assert torch.equal(logits(loaded(tmp_path, "out/sft")), logits(model))
    with pytest.raises(InputError) as caught:
        resolve(tmp_path, "tuned", "out", "")
    assert "out/sft" in caught.value.hint


def renamed(path: Path, old: str, new: str) -> None:
    tensors = load_file(path)
    changed = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    assert changed.keys() != tensors.keys()
    save_file(changed, path, metadata={"format": "pt"})


GEMMA = {**COMMON, "head_dim": 8, "sliding_window": 4,
         "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
SIGHT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
         "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip


def gemma3() -> torch.nn.Module:
    torch.manual_seed(0)
    config = Gemma3Config(text_config=GEMMA, vision_config=SIGHT, mm_tokens_per_image=4)
    return Gemma3ForConditionalGeneration(config).eval()


def test_keys_of_an_older_transformers_are_those_that_peft_converts(tmp_path):
    base = gemma3()
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, init_lora_weights=False, target_modules=r".*language_model.*q_proj")
    model = get_peft_model(base, config).eval()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/adapter_model.safetensors"
    renamed(weights, "model.language_model.", "language_model.model.")
    assert torch.equal(logits(loaded(tmp_path)), logits(model))
    renamed(weights, "layers.1.", "layers.7.")
    with pytest.raises(InputError, match="are incomplete"):
        loaded(tmp_path)


@pytest.mark.parametrize("start", ["_orig_mod.", "base_model.model._orig_mod."])
def test_names_of_a_compiled_model_are_told_with_the_command_that_renames(start, bases, tmp_path):
    model = tune(bases / "tied", LoraConfig(**EVERY))
    model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/adapter_model.safetensors"
    inner = start.startswith("base")
    renamed(weights, "base_model.model.", start if inner else f"{start}base_model.model.")
    with pytest.raises(InputError, match="compiled model") as caught:
        loaded(tmp_path)
    command = caught.value.hint.removeprefix("rename them: ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def seeing(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    sight = {"embed_dim": 32, "depth": 1, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2}
    model = {
        "gemma3": gemma3,
        "qwen2_vl": lambda: Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config={**COMMON, "rope_scaling": rope}, vision_config=sight)
        ),
        "llava": lambda: LlavaForConditionalGeneration(
            LlavaConfig(
                text_config=LlamaConfig(**COMMON),
                vision_config=CLIPVisionConfig(**{**SIGHT, "num_hidden_layers": 2}),
                image_token_index=399,
            )
        ),
        "smolvlm": lambda: SmolVLMForConditionalGeneration(
            SmolVLMConfig(
                text_config={**COMMON, "model_type": "llama"},
                vision_config=SIGHT,
                image_token_id=399,
            )
        ),
    }[kind]()
    return model.eval()


RIN = """
[data]
files = ["data.jsonl"]
template = "chat"
[model]
dtype = "float32"
[gradient]
dimensions = 2048
[[checkpoints]]
name = "tuned"
path = "model"
"""


def project(folder: Path) -> Path:
    tiny.tokenizer().save_pretrained(folder / "model")
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(12))
    (folder / "rin.toml").write_text(RIN)
    return folder


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_vl", "llava", "smolvlm"])
def test_of_a_model_that_sees_the_text_side_is_explained(kind, tmp_path):
    model = seeing(kind)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded(tmp_path)), logits(model))
    done = forked.rin(project(tmp_path), "cache")
    assert done.returncode == 0, done.stderr
    assert "12 cached" in done.stderr
    asked = ("retrieve", "--row", "data.jsonl:6", "--score", "cosine", "--json")
    answer = json.loads(forked.rin(tmp_path, *asked).stdout)
    assert answer["queries"][0]["examples"][0]["rows"][0]["line"] == 6


def test_a_value_head_is_beside_the_language_model(tmp_path):
    model = tiny.llama()
    model.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file({**load_file(weights), **head}, weights, metadata={"format": "pt"})
    assert torch.equal(logits(loaded(tmp_path)), logits(model))
    done = forked.rin(project(tmp_path), "cache")
    assert "beside the language model" in done.stderr, done.stderr


SMALL = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {
    "LlamaForSequenceClassification": lambda: LlamaForSequenceClassification(LlamaConfig(**COMMON)),
    "BertForMaskedLM": lambda: BertForMaskedLM(BertConfig(**SMALL, intermediate_size=48)),
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_causal_language_model_is_refused_by_name(kind, tmp_path):
    OTHERS[kind]().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=f"is {kind}, which"):
        loaded(tmp_path)
    done = forked.rin(project(tmp_path), "cache")
    assert (done.returncode, kind in done.stderr) == (4, True)


def test_a_classifier_that_does_not_say_so_is_known_by_its_head(tmp_path):
    OTHERS["LlamaForSequenceClassification"]().save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": None}))
    with pytest.raises(InputError, match=r"has score\.weight: it is a classifier"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_type": "SEQ_CLS"}, "was trained for the task SEQ_CLS"),
        ({"task_type": "TOKEN_CLS"}, "was trained for the task TOKEN_CLS"),
        ({"peft_type": "PROMPT_TUNING"}, r"is prompt tuning \(PROMPT_TUNING\)"),
        ({"peft_type": "PREFIX_TUNING"}, r"is prefix tuning \(PREFIX_TUNING\)"),
        ({"init_lora_weights": "pissa_niter_16"}, "began as a fast PiSSA"),
        ({"init_lora_weights": "corda"}, "began as CorDA"),
        ({"init_lora_weights": "lora_ga"}, "began as LoRA-GA"),
    ],
)
def test_adapters_that_cannot_be_explained_are_refused_where_their_settings_are_read(
    change, reason, bases, tmp_path
):
    tune(bases / "tied", LoraConfig(**QUERY)).save_pretrained(tmp_path / "model")
    path = tmp_path / "model/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=reason) as caught:
        resolve(tmp_path, "tuned", "model", "")
    assert caught.value.hint


def test_another_model_s_adapter_is_refused(bases, tmp_path):
    model = tune(bases / "tied", LoraConfig(**EVERY))
    model.save_pretrained(tmp_path / "model")
    tiny.llama(hidden_size=64).save_pretrained(tmp_path / "wide")
    checkpoint = resolve(tmp_path, "tuned", "model", str(tmp_path / "wide"))
    with pytest.raises(InputError, match="was trained on another model"):
        load_model(checkpoint, "cpu")


def test_pytorch_s_own_files_are_read_as_tensors_only(bases, tmp_path):
    model = tune(bases / "tied", LoraConfig(**EVERY))
    model.save_pretrained(tmp_path / "model")
    memory = Fingerprints(tmp_path / "memory.json")
    before = memory.checkpoint(resolve(tmp_path, "tuned", "model", ""))
    weights = tmp_path / "model/adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "model/adapter_model.bin")
    weights.unlink()
    assert torch.equal(logits(loaded(tmp_path)), logits(model))
    assert memory.checkpoint(resolve(tmp_path, "tuned", "model", "")) == before

    full = tiny.llama()
    full.save_pretrained(tmp_path / "full")
    before = memory.checkpoint(resolve(tmp_path, "full", "full", ""))
    weights = tmp_path / "full/model.safetensors"
    torch.save(load_file(weights), tmp_path / "full/pytorch_model.bin")
    weights.unlink()
    assert torch.equal(logits(loaded(tmp_path, "full")), logits(full))
    assert memory.checkpoint(resolve(tmp_path, "full", "full", "")) == before


class Boom:
    def __reduce__(self):
        return shutil.rmtree, ("/tmp/nowhere",)


@pytest.mark.parametrize("content", [{"a": Boom()}, Boom(), {"a": "text"}])
def test_a_pickle_that_holds_more_is_refused(content, bases, tmp_path):
    tune(bases / "tied", LoraConfig(**QUERY)).save_pretrained(tmp_path / "model")
    (tmp_path / "model/adapter_model.safetensors").unlink()
    torch.save(content, tmp_path / "model/adapter_model.bin")
    done = forked.rin(project(tmp_path), "cache")
    assert done.returncode == 4
    assert "tensor" in done.stderr


@pytest.mark.parametrize(
    ("inside", "command"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
        ("zero_to_fp32.py", "zero_to_fp32.py"),
        ("global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"),
    ],
)
def test_divided_weights_are_refused_with_the_command_that_joins_them(inside, command, tmp_path):
    tiny.llama().save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    path = tmp_path / "model" / inside
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    done = forked.rin(project(tmp_path), "cache")
    assert done.returncode == 4
    assert command in done.stderr


class Rewriting(CachingProgress):
    """Writes the checkpoint again at a moment of a run."""

    def __init__(self, moment: str, weights: Path) -> None:
        self.moment = moment
        self.weights = weights

    def rewrite(self, moment: str) -> None:
        if moment == self.moment:
            moved = {name: tensor + 1 for name, tensor in load_file(self.weights).items()}
            save_file(moved, self.weights, metadata={"format": "pt"})

    def start(self, *_: int) -> None:
        self.rewrite("before loading")

    def ready(self, *_: object) -> None:
        self.rewrite("after loading")


@pytest.mark.parametrize(
    ("moment", "workers"), [("before loading", 1), ("after loading", 1), ("before loading", 2)]
)
def test_a_checkpoint_that_is_written_meanwhile_leaves_no_row(moment, workers, tmp_path):
    folder = tiny.project(tmp_path, 12, adapter=workers == 1, commit_seconds=0.001)
    weights = folder / (
        "adapter/adapter_model.safetensors" if workers == 1 else "base/model.safetensors"
    )
    opened = Project.open(folder)
    with pytest.raises(InputError, match="was written to while it was being used") as caught:
        opened.cache(workers=workers, progress=lambda _: Rewriting(moment, weights))
    assert f"{weights.name} has changed" in caught.value.message
    again = Project.open(folder)
    assert again.opened().newest() is None
    [done] = again.cache()
    assert done.computed == 12
