"""Measures against their definitions, learning rates against what a Trainer writes."""

import json

import bm25s
import numpy as np
import pytest

from rapidin_cli.data.examples import Example
from rapidin_cli.data.rows import Row
from rapidin_cli.errors import InputError
from rapidin_cli.evaluation import metrics
from rapidin_cli.influence.lexical import Lexical
from rapidin_cli.models.learning_rates import checkpoint_weights


def test_equal_values_share_their_rank():
    np.testing.assert_array_equal(metrics.ranks(np.array([3.0, 1, 3, 2])), [2.5, 0, 2.5, 1])


def test_spearman_is_the_correlation_of_ranks():
    left = np.array([[1.0, 5], [2, 5], [3, 5], [10, 5]])
    right = np.array([[2.0, 1], [4, 2], [8, 3], [9, 4]])
    np.testing.assert_allclose(metrics.spearman(left, right), [1, 0])
    np.testing.assert_allclose(metrics.spearman(left, -right), [-1, 0])


def test_lds_of_a_linear_model_is_one():
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((20, 3))
    members = generator.random((50, 20)) < 0.5
    losses = -(members.astype(float) @ scores) + 7
    np.testing.assert_allclose(metrics.lds(scores, members, losses), 1)
    np.testing.assert_allclose(metrics.lds(-scores, members, losses), -1)


def test_areas_and_precision_by_hand():
    scores = np.array([5.0, 4, 3, 2, 1])
    planted = np.array([True, False, True, False, False])
    assert metrics.precision_at(scores, planted, 2) == 0.5
    assert metrics.average_precision(scores, planted) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.auroc(scores, planted) == pytest.approx(5 / 6)
    assert metrics.auroc(np.zeros(5), planted) == 0.5


def test_the_interval_holds_the_mean():
    mean, low, high = metrics.interval([1.0, 2, 3, 4])
    assert mean == 2.5
    assert 1 <= low < mean < high <= 4


def example(text: str) -> Example:
    tokens = np.array([1, 2], dtype=np.int32)
    return Example(Row("", 0, text, "", text), tokens, tokens)


def test_bm25_finds_shared_words_and_survives_none():
    texts = [example(t) for t in ("the cat sat", "a dog ran", "cat and cat", "?!")]
    scores = Lexical(texts).scores(example("cat"))
    assert scores[2] > scores[0] > scores[1] == scores[3] == 0
    assert (Lexical(texts).scores(example("?")) == 0).all()
    assert (Lexical([example("?")]).scores(example("cat")) == 0).all()


def test_bm25_is_the_library_s_to_the_bit(tmp_path):
    words = ["Ein", "süßer", "CAT", "cat", "is", "is", "x", "naïve", "42", "東京タワー"]
    texts = [example(" ".join(words[n % 7 : n % 10])) for n in range(40)]
    question = example("CAT cat, Süßer! 42 東京タワー is is nowhere")
    tokens = bm25s.tokenize([f"{t.row.prompt}\n{t.row.response}" for t in texts], stopwords=None)
    theirs = bm25s.BM25()
    theirs.index(tokens, show_progress=False)
    asked = f"{question.row.prompt}\n{question.row.response}"
    split = bm25s.tokenize([asked], stopwords=None, return_ids=False, show_progress=False)[0]
    expected = theirs.get_scores(split)
    assert expected.any()
    for _ in ("made", "read"):
        found = Lexical(texts, tmp_path / "index").scores(question)
        assert found.dtype == expected.dtype
        assert (found == expected).all()
    (tmp_path / "index/params.index.json").write_text("[]")
    assert (Lexical(texts, tmp_path / "index").scores(question) == expected).all()


def weights_of(*rates: float, folders) -> tuple[list[float], str]:
    return checkpoint_weights([f"c{n}" for n in range(len(rates))], rates, folders)


def test_rates_come_from_rin_toml_then_the_trainer_then_nowhere(tmp_path):
    folders = [tmp_path / "c0", tmp_path / "c1"]
    for folder in folders:
        folder.mkdir()
    assert weights_of(1e-4, 3e-4, folders=folders)[0] == pytest.approx([0.25, 0.75])
    weights, source = weights_of(0, 0, folders=folders)
    assert weights == [0.5, 0.5]
    assert "equal" in source
    with pytest.raises(InputError, match="not 'c1'"):
        weights_of(1e-4, 0, folders=folders)
    history = [{"step": s, "learning_rate": rate} for s, rate in ((5, 4.0), (10, 2.0), (20, 1.0))]
    for folder, step in zip(folders, (10, 20), strict=True):
        state = {"global_step": step, "log_history": [h for h in history if h["step"] <= step]}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    weights, source = weights_of(0, 0, folders=folders)
    assert weights == pytest.approx([30 / 40, 10 / 40])  # mean rate times steps: 3 x 10, 1 x 10
    assert "trainer_state.json" in source
    (folders[0] / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match="not a Trainer's state file"):
        weights_of(0, 0, folders=folders)
