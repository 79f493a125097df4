"""Scores as users ask for them: exact, token by token, with curvature, contrast and focus."""

import json
import math
import shutil

import jsonschema
import pytest

from rapidin_cli import Options, Project, Question
from rapidin_cli.influence import answering as asking
from rapidin_cli.influence.queries import read_questions
from rapidin_storage import Snapshot
from tests.support import tiny
from tests.support.asked import PROMPT, RESPONSE, SCHEMA, by_digest
from tests.support.forked import rin

ASKED = Question("q1", prompt=PROMPT, response=RESPONSE)
EVERYTHING = {"top": 40, "token_top": 0, "exact": 1}


def scores_of(queries):
    """The kept examples and their scores, of all tokens; rounding depends on what is beside."""
    return [
        {e["digest"]: pytest.approx([e["score"], *e["tokens"]], rel=1e-4) for e in q["examples"]}
        for q in queries
    ]


def test_a_session_reads_the_cache_once_and_answers_as_single_questions_do(prepared, monkeypatch):
    project = Project.open(prepared)
    questions = [ASKED, Question("q2", prompt=PROMPT, response="It sleeps.")]
    options = Options(score="dot", exact=0, top=5, token_top=2)
    expected = scores_of([project.retrieve([q], options)["queries"][0] for q in questions])
    reads, stream = [], Snapshot.stream

    def watched(snapshot, names, chunks, keep):
        reads.append(list(chunks))
        return stream(snapshot, names, chunks, keep)

    def found(asked):
        return [
            {e["digest"]: [e["score"], *e["tokens"]] for e in q["examples"]}
            for q in asked.retrieve(questions, options)["queries"]
        ]

    monkeypatch.setattr(Snapshot, "stream", watched)
    assert found(project) == expected
    assert len(reads) == 1, "both queries in one pass"
    monkeypatch.setattr(asking, "_PREPARED_BYTES", 1)  # a group for each query
    assert found(project) == expected
    assert len(reads) == 3
    session = project.session(hold="cpu")
    assert found(session) == found(session) == expected
    assert [chunk for chunks in reads[3:] for chunk in chunks] == reads[0]


def test_rows_cannot_be_held_where_there_is_no_gpu(prepared):
    asked = ["--prompt", PROMPT, "--response", "x"]
    done = rin(prepared, "retrieve", *asked, "--hold", "gpu", "--device", "cpu")
    assert done.returncode == 2
    assert "cannot hold cached rows in 'gpu' while the model is on cpu" in done.stderr


def test_the_default_uses_the_curvature_and_is_exact(prepared):
    done = rin(prepared, "retrieve", "--prompt", PROMPT, "--response", RESPONSE, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    assert report["score"]["name"] == "ekfac"
    assert report["score"]["damping"] == 1.0
    query = report["queries"][0]
    assert query["exact"]["forward_mode"]
    assert query["exact"]["shortlist"] <= query["scored"] == 24
    assert query["exact"]["doubtful"] == 0
    assert all(e["sketched"] is not None and e["tokens_exact"] for e in query["examples"])
    scale = max(abs(e["score"]) for e in query["examples"])
    assert query["residual"] < 1e-3 * scale
    assert query["exact"]["residual"] < 1e-3 * scale
    for example in query["examples"]:
        assert sum(example["tokens"]) == pytest.approx(example["score"], abs=1e-3 * scale)
        learnt = sum(score for _, score in example["training"])
        assert learnt == pytest.approx(example["score"], abs=1e-3 * scale)
        assert "".join(text for text, _ in example["training"]).startswith(example["response"])
        assert example["sketched"] == pytest.approx(example["score"], abs=0.2 * scale)
    shown = rin(prepared, "report", "--example", query["examples"][0]["id"])
    assert "which of its tokens had that influence" in shown.stdout


def test_cells_join_training_tokens_and_generated_ones(prepared):
    done = rin(
        prepared, "retrieve", "--prompt", PROMPT, "--response", RESPONSE, "--cells", "1", "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    examples = report["queries"][0]["examples"]
    chosen = [example for example in examples if example["cells"] is not None]
    assert chosen == [examples[0], examples[-1]]
    for example in chosen:
        assert len(example["cells"]) == len(example["tokens"]) * len(example["training"])
        scale = sum(abs(score) for _, _, score in example["cells"])
        for ours, total in enumerate(example["tokens"]):
            found = sum(score for t, _, score in example["cells"] if t == ours)
            assert found == pytest.approx(total, abs=1e-4 * scale)
        for theirs, (_, total) in enumerate(example["training"]):
            found = sum(score for _, s, score in example["cells"] if s == theirs)
            assert found == pytest.approx(total, abs=1e-4 * scale)
    shown = rin(prepared, "report", "--example", examples[0]["id"])
    assert "generated token" in shown.stdout
    refused = rin(prepared, "retrieve", "--row", "data.jsonl:1", "--cells", "1", "--exact", "0")
    assert refused.returncode == 2


def test_a_contrast_is_the_difference_of_two_runs(prepared):
    project = Project.open(prepared)
    other = "The dog sleeps."
    questions = [
        Question("both", prompt=PROMPT, response=RESPONSE, contrast=other),
        Question("said", prompt=PROMPT, response=RESPONSE),
        Question("wanted", prompt=PROMPT, response=other),
    ]
    report = project.retrieve(questions, Options(score="dot", **EVERYTHING))
    both, said, wanted = (by_digest(report, n) for n in range(3))
    scale = max(abs(example["score"]) for example in both.values())
    for digest, example in both.items():
        expected = said[digest]["score"] - wanted[digest]["score"]
        assert example["score"] == pytest.approx(expected, abs=1e-4 * scale)
        parts = said[digest]["tokens"] + [-score for score in wanted[digest]["tokens"]]
        assert example["tokens"] == pytest.approx(parts, abs=1e-4 * scale)
    against = [
        t["text"] for t in report["queries"][0]["tokens"] if t["contrast"] and t["explained"]
    ]
    assert "".join(against) == other
    shown = rin(prepared, "report", report["id"], "--query", "both")
    assert "instead of" in shown.stdout


def test_focus_and_token_explain_a_part(prepared):
    project = Project.open(prepared)
    questions = [
        ASKED,
        Question("words", prompt=PROMPT, response=RESPONSE, focus="number 3"),
        Question("span", prompt=PROMPT, response=RESPONSE, span="2:3"),
    ]
    report = project.retrieve(questions, Options(score="dot", **EVERYTHING))
    texts = [t["text"] for t in report["queries"][0]["tokens"] if t["explained"]]
    whole, words, span = (by_digest(report, n) for n in range(3))
    chosen = [n for n, text in enumerate(texts) if text in (" number", " 3")]
    assert chosen == [2, 3]
    for digest, example in whole.items():
        expected = sum(example["tokens"][n] for n in chosen)
        assert words[digest]["score"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
        assert span[digest]["score"] == words[digest]["score"]
    for wrong, code, why in (
        (["--focus", "sheep"], 4, "does not say"),
        (["--token", "77"], 2, "not a span"),
    ):
        refused = rin(prepared, "retrieve", "--prompt", PROMPT, "--response", RESPONSE, *wrong)
        assert refused.returncode == code
        assert why in refused.stderr
    both = rin(prepared, "retrieve", "--row", "data.jsonl:1", "--focus", "a", "--contrast", "b")
    assert both.returncode == 2


def test_a_query_file_may_have_contrast_and_focus(prepared, tmp_path):
    path = tmp_path / "queries.jsonl"
    tiny.write_jsonl(
        path,
        [
            {"prompt": PROMPT, "response": RESPONSE, "contrast": "No."},
            {"prompt": PROMPT, "response": RESPONSE, "focus": "cat"},
        ],
    )
    found = read_questions(path, Project.open(prepared).config.data, generate=False)
    assert [(question.contrast, question.focus) for question in found] == [("No.", ""), ("", "cat")]


def test_several_checkpoints_are_a_weighted_loop(tmp_path):
    folder = tiny.project(tmp_path, 16)
    shutil.copytree(folder / "base", folder / "late")
    with (folder / "rin.toml").open("a") as stream:
        stream.write('[[checkpoints]]\nname = "late"\npath = "late"\nlearning_rate = 3e-4\n')
    text = (folder / "rin.toml").read_text()
    text = text.replace('path = "adapter"\n', 'path = "adapter"\nlearning_rate = 1e-4\n')
    (folder / "rin.toml").write_text(text)
    project = Project.open(folder)
    project.cache()
    for exact in (0, 1):
        options = Options(score="dot", top=16, token_top=0, exact=exact)
        loop = [project.retrieve([ASKED], options, checkpoint=n) for n in ("tuned", "late")]
        both = project.retrieve([ASKED], options, checkpoints=[])
        assert [m["weight"] for m in both["checkpoints"]] == [0.25, 0.75]
        early, late = map(by_digest, loop)
        summed = by_digest(both)
        assert len(summed) == 16
        for digest, example in summed.items():
            expected = 0.25 * early[digest]["score"] + 0.75 * late[digest]["score"]
            assert example["score"] == pytest.approx(expected, rel=1e-3, abs=1e-3)
            pairs = zip(early[digest]["tokens"], late[digest]["tokens"], strict=True)
            parts = [0.25 * a + 0.75 * b for a, b in pairs]
            assert example["tokens"] == pytest.approx(parts, rel=1e-2, abs=1e-2)
            if exact:
                learnt = sum(score for _, score in example["training"])
                assert learnt == pytest.approx(example["score"], rel=1e-2, abs=1e-2)
    done = rin(folder, "retrieve", "--checkpoints", "all", "--row", "data.jsonl:1")
    assert "weight 0.750" in done.stdout


@pytest.mark.parametrize("score", ["rapidin", "dot"])
def test_what_is_cached_decides_the_shortlist_and_not_the_scores(tmp_path, score):
    """Signs, int8, float16 and factors: the same exact top."""
    tops = []
    for number, lines in enumerate(
        (
            'precision = "sign"',
            'precision = "float16"',
            'row = "factors"\nrank = 2\nprecision = "int4"',
        )
    ):
        folder = tiny.project(tmp_path / str(number), 30)
        text = (folder / "rin.toml").read_text().replace('precision = "int8"', lines)
        (folder / "rin.toml").write_text(text)
        project = Project.open(folder)
        project.cache()
        report = project.retrieve([ASKED], Options(score=score, top=5, token_top=2))
        best = sorted(report["queries"][0]["examples"], key=lambda e: -e["score"])[:5]
        tops.append([(e["digest"], pytest.approx(e["score"], rel=1e-4)) for e in best])
    assert tops[0] == tops[1] == tops[2]


def test_the_shortlist_grows_while_coarse_rows_leave_doubt(tmp_path):
    """As far as there is room; what is left is told."""
    folder = tiny.project(tmp_path, 40)
    text = (folder / "rin.toml").read_text()
    text = text.replace('precision = "int8"', 'precision = "sign"')
    text = text.replace("dimensions = 2048", "dimensions = 448")
    (folder / "rin.toml").write_text(text)
    project = Project.open(folder)
    project.cache()

    def ask(**options):
        report = project.retrieve([ASKED], Options(score="cosine", tokens=False, **options))
        query = report["queries"][0]
        ranked = [(e["digest"], e["score"]) for e in query["examples"]]
        return query["exact"], sorted(ranked, key=lambda pair: -pair[1])

    everything, truth = ask(top=40)
    assert everything["shortlist"] == 40
    assert everything["doubtful"] == 0
    narrow, _ = ask(top=1, exact=1)
    assert narrow["shortlist"] == 8  # four times the first two
    assert narrow["doubtful"] > 0
    wide, found = ask(top=2, exact=2)
    assert 8 < wide["shortlist"] <= 32
    expected = [*truth[:2], *truth[-2:]]
    assert [d for d, _ in found] == [d for d, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], rel=1e-4)
    asked = "--prompt", ASKED.prompt, "--response", ASKED.response, "--score", "cosine"
    done = rin(folder, "retrieve", *asked, "--top", "1", "--exact", "1", "--no-tokens")
    assert '[gradient] row = "factors"' in rin(folder, "curvature").stderr
    asked = "--score cosine --top 1 --no-tokens --within 10s settles that"
    told = f"{narrow['doubtful']} more may be among the best: rin retrieve "
    assert asked in " ".join(done.stdout.split())
    assert told in " ".join(done.stdout.split())


def test_self_influence_lists_the_largest_gradients(prepared):
    done = rin(prepared, "show", "--self-influence", "--top", "3", "--json")
    found = json.loads(done.stdout)
    values = [row["self_influence"] for row in found["rows"]]
    assert values == sorted(values, reverse=True)
    facts = json.loads(rin(prepared, "show", found["rows"][0]["id"], "--json").stdout)
    assert math.sqrt(values[0]) == pytest.approx(facts["cached"]["norm"], rel=1e-3)
    leverage = json.loads(
        rin(prepared, "show", "--self-influence", "--score", "gram", "--json").stdout
    )
    assert all(row["self_influence"] > 0 for row in leverage["rows"])
    assert rin(prepared, "show").returncode == 2
    assert rin(prepared, "show", "--self-influence", "--score", "nothing").returncode == 2


def test_shared_words_stand_beside_influence(prepared):
    report = Project.open(prepared).retrieve([ASKED], Options(score="dot", top=24))
    query = report["queries"][0]
    matches = query["words"]["matches"]
    assert [m["bm25"] for m in matches] == sorted((m["bm25"] for m in matches), reverse=True)
    ranked = {e["digest"]: e["bm25"]["rank"] for e in query["examples"]}
    assert ranked[matches[0]["digest"]] == 1
    best = sorted(query["examples"], key=lambda e: -e["score"])
    raised = [e["bm25"]["rank"] or 99 for e in best if e["score"] > 0][:10]
    assert query["words"]["agree"] == sum(rank <= 10 for rank in raised)
