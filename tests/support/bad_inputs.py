"""Bad input of every kind: what is done to a good project, the command, and what it has to say."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from rapidin_cli.errors import ExitCode
from tests.support import tiny
from tests.support.forked import rin

USAGE, NO_PROJECT, BAD, STORE = (
    ExitCode.USAGE, ExitCode.NO_PROJECT, ExitCode.BAD_INPUT, ExitCode.STORE,
)  # fmt: skip

LONGEST = 300

CACHE = ("cache",)

ASK = ("retrieve", "--prompt", "Where is the cat?", "--response", "In the park.")

QUERIES = ("retrieve", "--queries", "queries.jsonl")

GOOD = tiny.rows(3)


def put(name, content):
    def change(folder):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def rows(*values):
    return put("data.jsonl", "".join(json.dumps(value) + "\n" for value in values))


def remove(*names):
    def change(folder):
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def as_folder(name):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def replace(old, new):
    """In rin.toml."""

    def change(folder):
        text = (folder / "rin.toml").read_text()
        assert old in text
        (folder / "rin.toml").write_text(text.replace(old, new, 1))

    return change


def add(text):
    """To rin.toml."""

    def change(folder):
        with (folder / "rin.toml").open("a") as file:
            file.write(f"\n{text}\n")

    return change


def setting(name, **values):
    """In a JSON file."""

    def change(folder):
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**known, **values}))

    return change


def cut(name, size):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


def another_base(folder):
    tiny.llama(hidden_size=64).save_pretrained(folder / "base")


def few_positions(folder):
    """A model that reads 1,024 tokens, and a row that has more."""
    config = GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=4, n_positions=1024)
    GPT2LMHeadModel(config).save_pretrained(folder / "base")
    replace('path = "adapter"', 'path = "base"')(folder)
    replace("max_tokens = 64", "max_tokens = 2048")(folder)
    rows({"prompt": "Say it.", "response": "no " * 600})(folder)


def not_finite(folder):
    path = folder / "adapter/adapter_model.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(path).items()}, path)


def asked(folder):
    """A saved result."""
    done = rin(folder, *ASK, "--exact", 0, "--top", 1, "--token-top", 1)
    assert done.returncode == 0, done.stderr


def both(*changes):
    def change(folder):
        for each in changes:
            each(folder)

    return change


def nothing(_):
    pass


@dataclass(frozen=True)
class Case:
    """What is done to a project, what is typed then, and what has to be said."""

    name: str
    change: object
    command: tuple
    code: ExitCode
    said: str


DATA = [
    Case("gone", remove("data.jsonl"), CACHE, BAD, "cannot read data.jsonl: No such file"),
    Case("a folder", as_folder("data.jsonl"), CACHE, BAD, "data.jsonl is a folder, but not one"),
    Case("empty", put("data.jsonl", ""), CACHE, BAD, "no usable row in data.jsonl"),
    Case("latin-1", put("data.jsonl", b'{"prompt": "\xe9"}'), CACHE, BAD, "not UTF-8 text (byte"),
    Case("utf-16", put("data.jsonl", "{}".encode("utf-16")), CACHE, BAD, "is UTF-16 text"),
    Case("half a row", put("data.jsonl", '{"prompt": "a", '), CACHE, BAD, "data.jsonl:1: broken"),
    Case("half a list", put("data.jsonl", "[\n" + json.dumps(GOOD[0]) + ",\n"), CACHE, BAD,
         "data.jsonl:3: broken JSON list"),
    Case("too deep", put("data.jsonl", '[{"a":' + '{"a":' * 10**5), CACHE, BAD, "too deeply"),
    Case("a number", rows(*GOOD, 3), CACHE, BAD, "data.jsonl:4: a row must be a JSON object"),
    Case("not text", rows(*GOOD, {"prompt": 3, "response": "x"}), CACHE, BAD,
         "data.jsonl:4: field 'prompt' must be text, not int"),
    Case("NaN", put("data.jsonl", '{"prompt": NaN, "response": "x"}'), CACHE, BAD, "not float"),
    Case("no response", rows(*GOOD, {"prompt": "x"}), CACHE, BAD, "'response' is missing"),
    Case("other fields", rows({"question": "x"}), CACHE, BAD, "unknown shape ('question')"),
    Case("two shapes", rows({"text": "a", **GOOD[0]}), CACHE, BAD,
         "data.jsonl:1: the row could be prompt or text"),
    Case("preferences", rows({"chosen": "a", "rejected": "b", **GOOD[0]}), CACHE, BAD,
         "'chosen', 'rejected': a row of preference training"),
    Case("no assistant", rows({"messages": [{"role": "user", "content": "x"}]}), CACHE, BAD,
         "data.jsonl:1: the conversation has no assistant turn"),
    Case("nothing left", rows({"prompt": "x y " * 400, "response": "b"}), CACHE, BAD,
         "no labelled token is left after cutting"),
]  # fmt: skip

CONFIG = [
    Case("no project", remove("rin.toml"), ("status",), NO_PROJECT, "there is no rin.toml in"),
    Case("not TOML", add("[data"), ("status",), BAD, "rin.toml is not TOML"),
    Case("a setting twice", replace("max_tokens = 64", "max_tokens = 64\nmax_tokens = 3"),
         ("status",), BAD, "line 6"),
    Case("a table twice", add("[cache]"), ("status",), BAD, "Cannot declare ('cache',) twice"),
    Case("not UTF-8", put("rin.toml", b"[data]\n\xff"), ("status",), BAD, "rin.toml is not TOML"),
    Case("unknown setting", replace("max_tokens", "max_token"), ("status",), BAD,
         "[data] has no setting 'max_token' (did you mean 'max_tokens'?)"),
    Case("unknown table", add("[gradients]"), ("status",), BAD, "did you mean 'gradient'?"),
    Case("wrong type", replace("max_tokens = 64", 'max_tokens = "64"'), ("status",), BAD,
         "[data] max_tokens = '64' must be a whole number"),
    Case("not a list", replace('["data.jsonl"]', '"data.jsonl"'), ("status",), BAD, "be a list"),
    Case("nan", replace("commit_seconds = 30", "commit_seconds = nan"), CACHE, BAD,
         "[cache] commit_seconds = nan must be a number"),
    Case("a name with a comma", replace('"tuned"', '"a,b"'), CACHE, BAD, "be called 'a,b'"),
    Case("a name that means all", replace('"tuned"', '"all"'), CACHE, BAD, "be called 'all'"),
    Case("a template", replace('"chat"', '"caht"'), CACHE, BAD, "template = 'caht' is neither"),
    Case("no file", replace('["data.jsonl"]', "[]"), CACHE, BAD, "[data] files is empty"),
    Case("local", put(".rin/config.local.toml", '[model]\nbaze = "x"'), ("status",), BAD,
         ".rin/config.local.toml: [model] has no setting 'baze' (did you mean 'base'?)"),
    Case("lock", put("rin.lock", "nonsense"), CACHE, BAD, "rin.lock does not have the format"),
]  # fmt: skip

CHECKPOINT = [
    Case("gone", replace('"adapter"', '"./gone"'), CACHE, BAD, "'tuned': cannot find ./gone"),
    Case("not on the hub", replace('"adapter"', '"acme/none"'), CACHE, BAD,
         "acme/none is not a folder here, and"),
    Case("base gone", remove("base"), CACHE, BAD, "base model of 'tuned': base is not a folder"),
    Case("adapter config", put("adapter/adapter_config.json", "{"), CACHE, BAD,
         "adapter_config.json: Expecting"),
    Case("no base named", put("adapter/adapter_config.json", "{}"), CACHE, BAD,
         "an adapter that does not name its base model"),
    Case("unknown adapter", setting("adapter/adapter_config.json", peft_type="NOPE"), CACHE, BAD,
         "'NOPE' is missing or unknown"),
    Case("of another base", another_base, CACHE, BAD, "was trained on another model"),
    Case("of another kind", setting("adapter/adapter_config.json", target_modules=["nope"]), CACHE,
         BAD, "was trained on another model"),
    Case("cut", cut("adapter/adapter_model.safetensors", 1000), CACHE, BAD, "not a valid safe"),
    Case("no weights", remove("adapter/adapter_model.safetensors"), CACHE, BAD,
         "has no adapter_model.safetensors"),
    Case("not finite", both(not_finite, rows(*tiny.rows(41))), CACHE, BAD, "not finite"),
    Case("unknown model", setting("base/config.json", model_type="nope"), CACHE, BAD,
         "model type `nope`"),
    Case("no tokenizer", remove("base/tokenizer.json", "base/tokenizer_config.json"), CACHE, BAD,
         "'tuned' has no tokenizer"),
    Case("a tokenizer", put("base/tokenizer.json", "{}"), CACHE, BAD, "the tokenizer of checkp"),
    Case("no chat template", remove("base/chat_template.jinja"), CACHE, BAD, "no chat template"),
    Case("chat template", put("base/chat_template.jinja", "{% for"), CACHE, BAD,
         "chat template is broken at line 1"),
    Case("positions", few_positions, CACHE, BAD, "longer than the model's 1,024 positions"),
]  # fmt: skip

QUERY = [
    Case("empty prompt", nothing, ("retrieve", "--prompt", "", "--generate"), BAD, "is empty"),
    Case("blank response", nothing, ("retrieve", "--prompt", "x", "--response", " "), BAD,
         "no token to explain"),
    Case("too long", nothing, ("retrieve", "--prompt", "x", "--response", "word " * 3000), BAD,
         "tokens, but the model takes 2,048"),
    Case("unknown row", nothing, ("retrieve", "--row", "nobody"), BAD, "has the id 'nobody'"),
    Case("gone", nothing, QUERIES, BAD, "cannot read queries.jsonl: No such file"),
    Case("empty", put("queries.jsonl", "\n"), QUERIES, BAD, "queries.jsonl has no queries"),
    Case("broken", put("queries.jsonl", "{"), QUERIES, BAD, "queries.jsonl:1: broken JSON"),
    Case("an id twice", put("queries.jsonl", (json.dumps({"id": "a", **GOOD[0]}) + "\n") * 2),
         QUERIES, BAD, "two queries have the id 'a'"),
    Case("unspoken focus", nothing, (*ASK, "--focus", "zebra"), BAD, "does not say 'zebra'"),
    Case("its own contrast", nothing, (*ASK, "--contrast", "In the park."), BAD,
         "the contrast equals the response"),
    Case("token 99", nothing, (*ASK, "--token", "99"), USAGE, "not a span of its tokens"),
    Case("token x", nothing, (*ASK, "--token", "x"), USAGE, "not a span of its tokens"),
]  # fmt: skip

ARGUMENTS = [
    Case("device", nothing, (*ASK, "--device", "banana"), USAGE, "'banana' is not a device"),
    Case("devices", nothing, ("cache", "--devices", "cpu,banana"), USAGE, "is not a device"),
    Case("two devices", nothing, (*ASK, "--device", "cuda:0,cuda:1"), USAGE, "on one device"),
    Case("score", nothing, (*ASK, "--score", "nope"), USAGE, "there is no score 'nope'"),
    Case("adam", nothing, (*ASK, "--score", "adam"), BAD, "'tuned' has no optimizer.pt"),
    Case("ekfac", nothing, (*ASK, "--score", "ekfac"), STORE, "no curvature was collected"),
    Case("damping", nothing, (*ASK, "--score", "dot", "--damping", "1"), USAGE, "no damping"),
    Case("damping of auto", nothing, (*ASK, "--damping", "1"), USAGE, "rapidin has no damping"),
    Case("damping inf", nothing, (*ASK, "--score", "gram", "--damping", "inf"), USAGE, "inf"),
    Case("twice", nothing, (*ASK, "--checkpoints", "tuned,tuned"), USAGE, "is named twice"),
    Case("all and one", nothing, (*ASK, "--checkpoints", "all,tuned"), USAGE, "neither `all`"),
    Case("nobody", nothing, (*ASK, "--checkpoints", "nobody"), BAD, "no checkpoint 'nobody'"),
    Case("no option", nothing, ("cache", "--wrokers", "2"), USAGE, "--wrokers"),
    Case("no command", nothing, ("cahce",), USAGE, "cahce"),
    Case("no number", nothing, ("cache", "--workers", "two"), USAGE, "--workers"),
    Case("no folder", nothing, ("-C", "nowhere", "status"), USAGE, "cannot work in nowhere"),
    Case("no report", nothing, ("report", "gone.json"), BAD, "cannot read gone.json: No such"),
    Case("no result", nothing, ("report", "zzz"), STORE, "there are no saved results"),
    Case("half a report", put("x.json", '{"schema": "rin.report/1"}'), ("report", "x.json"), BAD,
         "x.json is not a complete report of this version of rin: it lacks id"),
    Case("not a report", put("x.json", "{"), ("report", "x.json"), BAD, "x.json is not JSON"),
    Case("report token", asked, ("report", "--token", "99"), USAGE, "has tokens 0 to"),
    Case("report token x", asked, ("report", "--token", "x"), USAGE, "neither a token number"),
    Case("report query", asked, ("report", "--query", "nobody"), BAD, "no query 'nobody'"),
    Case("a file there", both(asked, put("r.html", "mine")), ("report", "--html", "r.html"), BAD,
         "r.html already exists"),
    Case("remote", nothing, ("push",), BAD, "this project has no remote"),
    Case("snapshot", nothing, ("diff", "tuned@99"), BAD, "no snapshot '99'"),
]  # fmt: skip

CASES = [
    pytest.param(case, id=f"{group}: {case.name}")
    for group, cases in {
        "data": DATA,
        "config": CONFIG,
        "checkpoint": CHECKPOINT,
        "query": QUERY,
        "arguments": ARGUMENTS,
    }.items()
    for case in cases
]
