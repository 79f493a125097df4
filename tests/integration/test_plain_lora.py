"""An ordinary LoRA is loaded without PEFT: to the bit what PEFT makes of it, or left to PEFT."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rapidin_cli.errors import InputError
from rapidin_cli.gradients.engine import GradientEngine
from rapidin_cli.gradients.passes import Batch
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import resolve
from rapidin_cli.models.loading import load_model
from rapidin_cli.models.plain_lora import DECODERS, Adapted, with_plain_lora
from tests.support import tiny
from tests.support.architectures import COMMON, MODELS, model_of

IDS = torch.arange(20)[None]
EVERY = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
pytestmark = pytest.mark.filterwarnings("ignore")


def saved(folder: Path, base: torch.nn.Module, **settings) -> Path:
    """An adapter of which every number has moved from where it began, beside its base."""
    torch.manual_seed(3)
    base.save_pretrained(folder / "base")
    model = get_peft_model(base, LoraConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def both(adapter: Path, dtype=torch.float32) -> tuple[torch.nn.Module, torch.nn.Module]:
    """What is loaded here, and what PEFT loads."""
    base = adapter.parent / "base"
    ours = with_plain_lora(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)
    assert isinstance(ours, Adapted)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return ours.eval(), PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()


def same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    """The same trained parameters under the same names, logits, gradients and answers."""
    pairs = [
        [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for model in (first, second)
    ]
    assert [name for name, _ in pairs[0]] == [name for name, _ in pairs[1]]
    assert first.state_dict().keys() == second.state_dict().keys()
    found = []
    for model, parameters in zip((first, second), pairs, strict=True):
        logits = model(input_ids=IDS, use_cache=False).logits
        gradients = torch.autograd.grad(logits.float().square().sum(), [p for _, p in parameters])
        found.append([logits, *gradients, *(p for _, p in parameters)])
        found[-1].append(model.generate(input_ids=IDS, max_new_tokens=4, do_sample=False))
        with model.disable_adapter(), torch.no_grad():
            found[-1].append(model(input_ids=IDS).logits)
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


SETTINGS = {
    "LoRA": EVERY,
    "no task": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "rsLoRA": {**EVERY, "use_rslora": True},
    "dropout": {**EVERY, "lora_dropout": 0.2, "init_lora_weights": "gaussian"},
    "one layer": {"r": 3, "target_modules": ["model.layers.1.mlp.up_proj"]},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_it_is_what_peft_makes_of_it(kind, tmp_path):
    ours, theirs = both(saved(tmp_path, tiny.llama(), **SETTINGS[kind]))
    same(ours, theirs)
    torch.manual_seed(5)
    made = ours.train()(input_ids=IDS).logits
    torch.manual_seed(5)
    assert torch.equal(made, theirs.train()(input_ids=IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_its_factors_are_float32_on_a_base_of_half_precision(dtype, tmp_path):
    ours, theirs = both(saved(tmp_path, tiny.llama(), **EVERY), dtype)
    same(ours, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_that_is_taken(kind, tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{"head_dim": 8, **COMMON, **MODELS.get(kind, {})})
    same(*both(saved(tmp_path, AutoModelForCausalLM.from_config(config), **EVERY)))


def test_what_is_captured_is_the_same(tmp_path):
    ids = torch.arange(48).view(4, 12) % 400
    found = []
    for model in both(saved(tmp_path, tiny.llama(), **EVERY)):
        spec = GradientSpec(dimensions=2048)
        engine = GradientEngine(model, spec, torch.device("cpu"), "float32")
        found.append((engine.layout, engine(Batch(ids, ids.clone()))))
    assert found[0][0] == found[1][0]
    for part in ("blocks", "norm", "loss"):
        assert torch.equal(getattr(found[0][1], part), getattr(found[1][1], part))


def changed(adapter: Path, **changes) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"layers_to_transform": [0]},
        {"exclude_modules": ["q_proj"]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "LOHA"},
        {"target_modules": ".*q_proj"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": []},
        {"r": 3},
        {"trainable_token_indices": [3]},
        {"a_setting_of_tomorrow": True},
    ],
)
def test_whatever_is_more_than_that_is_left_to_peft(change, tmp_path):
    adapter = saved(tmp_path, tiny.llama(), **EVERY)
    changed(adapter, **change)
    base = tiny.llama()
    names = [name for name, _ in base.named_modules()]
    assert with_plain_lora(base, adapter) is None
    assert names == [name for name, _ in base.named_modules()]
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("base", [tiny.gpt2, tiny.cohere, lambda: model_of("mixtral")])
def test_other_models_are_left_to_peft(base, tmp_path):
    adapter = saved(tmp_path, base(), **EVERY)
    assert with_plain_lora(base(), adapter) is None


@pytest.mark.parametrize("change", ["fewer", "more", "other"])
def test_files_that_do_not_fit_are_left_to_peft_which_refuses_them(change, tmp_path):
    adapter = saved(tmp_path, tiny.llama(), **EVERY)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if change == "fewer":
        del tensors[first]
    elif change == "more":
        tensors["base_model.model.elsewhere.lora_A.weight"] = torch.ones(2, 2)
    else:
        tensors[first] = torch.ones(9, 9)
    save_file(tensors, path, metadata={"format": "pt"})
    assert with_plain_lora(tiny.llama(), adapter) is None
    checkpoint = resolve(adapter.parent, "tuned", "adapter", "")
    if change == "more":  # as PEFT does, which passes over it
        load_model(checkpoint, "cpu")
        return
    with warnings.catch_warnings(), pytest.raises(InputError):
        load_model(checkpoint, "cpu")
