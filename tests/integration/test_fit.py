"""The checkpoint says which rendering its training used."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rapidin_cli import Project
from rapidin_cli.data.encoding import Encoder
from rapidin_cli.data.reading import read_rows
from rapidin_cli.data.rows import DataSettings
from rapidin_cli.evaluation.fit import examine_rendering
from rapidin_cli.evaluation.training import Training, fine_tune
from tests.support import tiny

RIN = """
[data]
files = ["data.jsonl"]
template = "{template}"
learn = "{learn}"
append_eos = {eos}
[model]
dtype = "float32"
[[checkpoints]]
name = "tuned"
path = "tuned"
"""


def trained(folder, adapter=True, **settings):
    """A tiny model that has learnt the rows, rendered in one way."""
    tiny.write_jsonl(folder / "data.jsonl", tiny.rows(40))
    base = tiny.llama(tie_word_embeddings=not adapter)
    tokenizer = tiny.tokenizer()
    model = base
    if adapter:
        base.save_pretrained(folder / "base")
        torch.manual_seed(1)
        whole = {"r": 8, "modules_to_save": ["lm_head"]}  # its base is random, and has to change
        model = get_peft_model(base, LoraConfig(target_modules="all-linear", **whole))
    chosen = DataSettings(files=("data.jsonl",), **settings)
    examples = list(Encoder(tokenizer, chosen).examples(read_rows(folder, chosen)))
    fine_tune(model, examples, Training(epochs=25, batch_rows=8, learning_rate=2e-2))
    if adapter:
        model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")


def asked(folder, template, learn="assistant", eos=True):
    text = RIN.format(template=template, learn=learn, eos=str(eos).lower())
    (folder / "rin.toml").write_text(text)
    return examine_rendering(Project.open(folder).opened(), "cpu")


@pytest.mark.filterwarnings("ignore")
def test_another_template_than_training_s_is_complained_of(tmp_path):
    trained(tmp_path, adapter=False, template="chat")
    right = asked(tmp_path, "chat")
    assert right.complaints == []
    assert right.fits[0].name == "chat"
    assert right.fits[0].loss == min(fit.loss for fit in right.fits)
    assert right.words is None  # nobody knows the base of a full model
    wrong = asked(tmp_path, "plain")
    assert "template 'chat' fits better" in wrong.complaints[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("learnt", "other"), [("all", "assistant"), ("assistant", "all")])
def test_whether_prompts_were_learnt_shows_in_the_template_s_own_words(learnt, other, tmp_path):
    trained(tmp_path, template="chat", learn=learnt)
    right, wrong = asked(tmp_path, "chat", learnt), asked(tmp_path, "chat", other)
    assert right.words.learnt is (learnt == "all")
    assert right.complaints == []
    told = "prompts too" if learnt == "all" else "responses only"
    assert told in wrong.complaints[0]


@pytest.mark.filterwarnings("ignore")
def test_an_ending_that_training_did_not_add_is_complained_of(tmp_path):
    trained(tmp_path, adapter=False, template="plain", append_eos=False)
    assert "append_eos = false" in " ".join(asked(tmp_path, "plain").complaints)
    assert "append_eos" not in " ".join(asked(tmp_path, "plain", eos=False).complaints)
