"""rin.toml, rin.lock, fingerprints, saved results."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapidin_cli.errors import InputError, MissingError, UsageError
from rapidin_cli.models.checkpoints import resolve
from rapidin_cli.models.fingerprints import Fingerprints
from rapidin_cli.output.sanitise import one_line, visible
from rapidin_cli.workspace.config import CONFIG_FILE, RemoteSettings, load_config
from rapidin_cli.workspace.lock import LockEntry, read_lock, write_lock
from rapidin_cli.workspace.remotes import add_remote, remove_remote
from rapidin_cli.workspace.results import Results
from tests.support import tiny
from tests.support.browser import make_report


def config(tmp_path, text):
    (tmp_path / CONFIG_FILE).write_text(text)
    return load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data", "not TOML"),
        ("[dta]", "no setting 'dta'"),
        ("[data]\nfile = 'x'", "no setting 'file'"),
        ("[data]\nfiles = 'x'", "must be a list"),
        ("[data]\nmax_tokens = '7'", "must be a whole number"),
        ("[data]\nmax_tokens = true", "must be a whole number"),
        ("[model]\ndtype = 'float8'", "must be one of"),
        ("[gradient]\nprecision = 'int3'", "must be one of"),
        ("[gradient]\ndimensions = 10", "not a multiple of 8"),
        ("[[checkpoints]]\nname = 'a'", "needs 'path'"),
        ("checkpoints = 3", "must be a list"),
        ("[cache]\nbatch_tokens = 0", "must be positive"),
        ("[data]\nmax_tokens = -1", "2 or more"),
        ("remote = 3", "must be a table"),
        ("[remote.origin]", "needs 'url'"),
        ("[remote.origin]\nurl = ''", "needs a url"),
        ("[remote.'a b']\nurl = 'x'", "letters and digits"),
        ("[remote.origin]\nurl = 's3://b'\nkey = 'AKIA'", "no setting 'key'"),
        (
            "[[checkpoints]]\nname='a'\npath='x'\n[[checkpoints]]\nname='a'\npath='y'",
            "two checkpoints are called 'a'",
        ),
    ],
)
def test_wrong_settings_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        config(tmp_path, text)
    assert caught.value.hint


def test_local_settings_win(tmp_path):
    (tmp_path / ".rin").mkdir()
    (tmp_path / ".rin/config.local.toml").write_text("[cache]\nworkers = 3\n")
    made = config(tmp_path, "[cache]\nworkers = 1\nbatch_tokens = 99\n")
    assert (made.cache.workers, made.cache.batch_tokens) == (3, 99)


def entry(letter, rows=5):
    return LockEntry(*(letter * 64 for _ in range(4)), rows)


def test_the_lock_has_one_line_a_checkpoint(tmp_path):
    write_lock(tmp_path, {"b": entry("b"), "a": entry("a")})
    lines = (tmp_path / "rin.lock").read_text().split("\n\n")[:-1]
    assert [json.loads(line).get("checkpoint") for line in lines] == [None, "a", "b"]
    assert read_lock(tmp_path) == {"a": entry("a"), "b": entry("b")}


NEW = entry("d", 6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a": NEW}, {"c": entry("c")}),
        ({"a": NEW}, {"b": NEW}),
        ({"b": NEW}, {"c": entry("c")}),
    ],
)
def test_git_merges_locks_of_different_checkpoints(tmp_path, ours, theirs):
    """One cached a checkpoint again while the other did or added another, be it the next."""

    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet", "--initial-branch=main")
    before = {"a": entry("a"), "b": entry("b")}
    for branch, entries in (
        ("main", before),
        ("ours", {**before, **ours}),
        ("theirs", {**before, **theirs}),
    ):
        if branch != "main":
            git("checkout", "--quiet", "-b", branch, "main")
        write_lock(tmp_path, entries)
        git("add", "rin.lock")
        git("commit", "--quiet", "-m", branch)
    git("merge", "--quiet", "ours")
    assert read_lock(tmp_path) == {**before, **ours, **theirs}


def test_many_may_write_the_lock_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            wanted = [{"a": entry("a", n)} for n in range(8)]
            list(pool.map(lambda entries: write_lock(tmp_path, entries), wanted))
            assert read_lock(tmp_path) in wanted
    assert [path.name for path in tmp_path.iterdir()] == ["rin.lock"]


@pytest.mark.parametrize(
    ("mangle", "message"),
    [
        (lambda text: f"<<<<<<< HEAD\n{text}", "has a merge conflict"),
        (lambda text: text + text.splitlines()[2], "names checkpoint 'a' twice"),
        (lambda text: text.replace("2}", "3}"), "newer rin"),
        (lambda text: text.replace("aaaa", "aa-a"), "not have the format of this version"),
        (
            lambda text: text.replace('"rows": 5', '"rows": "many"'),
            "not have the format of this version",
        ),
        (lambda text: text[:-20], "not have the format of this version"),
        (lambda _: "", "not have the format of this version"),
        (lambda _: '{"format": 1, "checkpoints": {}}', "not have the format of this version"),
        (lambda _: '[1]\n"a"\n', "not have the format of this version"),
    ],
)
def test_a_mangled_lock_is_named(tmp_path, mangle, message):
    write_lock(tmp_path, {"a": entry("a")})
    path = tmp_path / "rin.lock"
    path.write_text(mangle(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        read_lock(tmp_path)
    assert caught.value.hint


def test_remotes_are_written_into_rin_toml_and_out_again(tmp_path):
    text = "# mine\n[data]\nfiles = []  # none\n\n[cache]\nworkers = 1\n"
    made = config(tmp_path, text)
    add_remote(tmp_path, made, "origin", RemoteSettings("s3://b/p", "http://h:1", "me"))
    made = load_config(tmp_path)
    assert made.remote == {"origin": RemoteSettings("s3://b/p", "http://h:1", "me")}
    add_remote(tmp_path, made, "nas", RemoteSettings("../shared"))
    made = load_config(tmp_path)
    assert list(made.remote) == ["origin", "nas"]
    with pytest.raises(UsageError, match="already"):
        add_remote(tmp_path, made, "nas", RemoteSettings("elsewhere"))
    with pytest.raises(UsageError, match="cannot be the name"):
        add_remote(tmp_path, made, "a.b", RemoteSettings("elsewhere"))
    with pytest.raises(InputError, match="cannot be opened"):
        add_remote(tmp_path, made, "x", RemoteSettings("nowhere://a/b"))
    with pytest.raises(InputError, match="is for S3"):
        add_remote(tmp_path, made, "x", RemoteSettings("memory://a", profile="me"))
    remove_remote(tmp_path, made, "origin")
    assert list(load_config(tmp_path).remote) == ["nas"]
    remove_remote(tmp_path, made, "nas")
    assert (tmp_path / CONFIG_FILE).read_text() == text


def test_a_remote_written_in_another_way_is_left_to_the_user(tmp_path):
    text = 'remote = { origin = { url = "s3://b/p" } }\n'
    made = config(tmp_path, text)
    with pytest.raises(InputError, match="cannot change safely"):
        remove_remote(tmp_path, made, "origin")
    assert (tmp_path / CONFIG_FILE).read_text() == text


def test_local_settings_reach_into_a_remote(tmp_path):
    (tmp_path / ".rin").mkdir()
    (tmp_path / ".rin/config.local.toml").write_text('[remote.origin]\nprofile = "me"\n')
    made = config(tmp_path, '[remote.origin]\nurl = "s3://b/p"\n')
    assert made.remote["origin"] == RemoteSettings("s3://b/p", profile="me")


@pytest.fixture
def checkpoint(tmp_path):
    tiny.project(tmp_path)
    return resolve(tmp_path, "tuned", "adapter", "")


def fingerprint(tmp_path, checkpoint):
    return Fingerprints(tmp_path / "memory.json").checkpoint(checkpoint)


def test_a_fingerprint_follows_tensors_and_settings_only(tmp_path, checkpoint):
    before = fingerprint(tmp_path, checkpoint)
    path = checkpoint.path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata={"format": "pt", "by": "another"})
    assert fingerprint(tmp_path, checkpoint) == before

    settings = checkpoint.path / "adapter_config.json"
    values = json.loads(settings.read_text())
    settings.write_text(json.dumps({**values, "base_model_name_or_path": "moved"}))
    assert fingerprint(tmp_path, checkpoint) == before
    settings.write_text(json.dumps({**values, "lora_alpha": 99}))
    assert fingerprint(tmp_path, checkpoint) != before
    settings.write_text(json.dumps(values))

    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1e-6}, path)
    assert fingerprint(tmp_path, checkpoint) != before


def test_a_changed_base_changes_the_fingerprint(tmp_path, checkpoint):
    before = fingerprint(tmp_path, checkpoint)
    path = checkpoint.base / "model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, path, metadata={"format": "pt"})
    assert fingerprint(tmp_path, checkpoint) != before


def test_the_tokenizer_fingerprint_follows_vocabulary_and_template(tmp_path, checkpoint):
    def now(rendering):
        return Fingerprints(tmp_path / "memory.json").tokenizer(checkpoint, rendering)

    before = now({"template": "chat"})
    assert now({"template": "plain"}) != before
    path = checkpoint.base / "tokenizer.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "truncation": {"max_length": 5}}))
    assert now({"template": "chat"}) == before
    (checkpoint.base / "chat_template.jinja").write_text("other")
    assert now({"template": "chat"}) != before


def test_checkpoints_that_cannot_be_used_are_named(tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"cannot find \./gone"):
        resolve(tmp_path, "x", "./gone", "")
    with pytest.raises(InputError, match="could not be fetched"):
        resolve(tmp_path, "x", "some-org/some-model", "")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither adapter_config"):
        resolve(tmp_path, "x", "empty", "")
    weights = checkpoint.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="not a valid safetensors file"):
        fingerprint(tmp_path, checkpoint)
    weights.rename(checkpoint.path / "adapter_model.bin")
    with pytest.raises(InputError, match="is not a file of tensors only"):
        fingerprint(tmp_path, checkpoint)
    (checkpoint.path / "adapter_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        fingerprint(tmp_path, checkpoint)


def test_only_what_is_loaded_is_hashed(tmp_path, checkpoint):
    before = fingerprint(tmp_path, checkpoint)
    for folder, stem in ((checkpoint.path, "adapter_model"), (checkpoint.base, "model")):
        for name in (f"{stem}_old", f"{stem}-00001-of-00001", f"{stem}.bak"):
            shutil.copy(folder / f"{stem}.safetensors", folder / f"{name}.safetensors")
    old = checkpoint.path / "adapter_model_old.safetensors"
    tensors = load_file(old)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, old)
    assert fingerprint(tmp_path, checkpoint) == before
    save_file({name: tensor + 1 for name, tensor in tensors.items()},
              checkpoint.path / "adapter_model.safetensors")  # fmt: skip
    assert fingerprint(tmp_path, checkpoint) != before


def test_a_model_in_parts_is_what_its_index_names(tmp_path, checkpoint):
    before = fingerprint(tmp_path, checkpoint)
    base = checkpoint.base
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:5],
             "model-00002-of-00002.safetensors": names[5:]}  # fmt: skip
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, base / file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"parts of a model, but no model\.safetensors\.index"):
        fingerprint(tmp_path, checkpoint)
    index = {name: file for file, part in parts.items() for name in part}
    path = base / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert fingerprint(tmp_path, checkpoint) == before
    save_file(tensors, base / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="twice"):
        fingerprint(tmp_path, checkpoint)
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="lacks model-00002"):
        fingerprint(tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"add_eos_token": True}),
        ("tokenizer_config.json", {"extra_special_tokens": ["The cat"]}),
        ("tokenizer_config.json", {"additional_special_tokens": ["The cat"]}),
        ("tokenizer_config.json", {"pad_token": "The cat"}),
        ("tokenizer_config.json", {"unk_token": "The cat"}),
        ("tokenizer_config.json", {"bos_token": "The cat"}),
        ("added_tokens.json", {"The cat": 400}),
        ("special_tokens_map.json", {"eos_token": "<|user|>"}),
        ("special_tokens_map.json", {"additional_special_tokens": ["The cat"]}),
    ],
)
def test_whatever_changes_tokens_changes_the_fingerprint(file, change, tmp_path, checkpoint):
    def now():
        return Fingerprints(tmp_path / "memory.json").tokenizer(checkpoint, {})

    before = now()
    path = checkpoint.base / file
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **change}))
    assert now() != before


def test_what_changes_no_token_changes_no_fingerprint(tmp_path, checkpoint):
    def now():
        return Fingerprints(tmp_path / "memory.json").tokenizer(checkpoint, {})

    before = now()
    path = checkpoint.base / "tokenizer_config.json"
    known = json.loads(path.read_text())
    ordinary = {"padding_side": "left", "model_max_length": 5, "add_eos_token": False,
                "extra_special_tokens": {}, "unk_token": "<|end|>"}  # fmt: skip
    path.write_text(json.dumps({**known, **ordinary}))
    marks = {"eos_token": {"content": "<|end|>", "lstrip": False}, "pad_token": "<|pad|>"}
    (checkpoint.base / "special_tokens_map.json").write_text(json.dumps(marks))
    (checkpoint.base / "added_tokens.json").write_text(json.dumps({"<|user|>": 2}))
    (checkpoint.base / "modeling_mine.py").write_text("1")
    assert now() == before
    trusted = replace(checkpoint, trust_remote_code=True)
    assert Fingerprints(tmp_path / "memory.json").tokenizer(trusted, {}) != before
    assert fingerprint(tmp_path, trusted) != fingerprint(tmp_path, checkpoint)


def test_results_are_found_by_their_beginning(tmp_path):
    results = Results(tmp_path / "results")
    with pytest.raises(MissingError, match="no saved results"):
        results.load()
    for name in ("aaaa11112222", "bbbb11112222"):
        results.save({**make_report(), "id": name})
    assert results.load()["id"] == "bbbb11112222"
    assert results.load("aaa")["id"] == "aaaa11112222"
    assert (tmp_path / "results/aaaa11112222.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(MissingError, match="starts with 'x'"):
        results.load("x")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match="not a rin report"):
        results.load(str(tmp_path / "other.json"))


def test_hostile_text_is_made_visible():
    assert visible("a\x1b[31mb\u202ec\u200dd\n") == "a⟨U+001B⟩[31mb⟨U+202E⟩c\u200dd\n"
    assert one_line("a\n b\tc" * 50, 7) == "a b ca…"
