"""All scores of a set: what is wrong with the captions, and Java that is absent or broken."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xvlm_core.errors import DataError, UsageError
from xvlm_core.metrics.caption import external
from xvlm_core.metrics.caption.scores import score_captions

CANDIDATES = {"a": "A man rides a horse.", "b": "Two dogs run!"}
REFERENCES = {"a": ["a man on a horse", "man riding a horse"], "b": ["two dogs run", "dogs run"]}
NEED_NO_JAVA = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}


def only_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with this ``java`` and nothing else."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_scores_of_a_set_and_of_each_picture(no_java: None):
    scores = score_captions(CANDIDATES, REFERENCES, ("bleu", "rouge-l", "cider", "plain-cider"))
    assert set(scores.corpus) == set(scores.each) == {*NEED_NO_JAVA, "plain CIDEr"}
    assert scores.image_ids == ("a", "b")
    assert not scores.skipped
    assert all(each.shape == (2,) for each in scores.each.values())
    assert scores.each["ROUGE-L"][1] == 1  # case and punctuation do not count
    assert scores.corpus["CIDEr"] == pytest.approx(scores.each["CIDEr"].mean())


def test_without_java_the_others_are_kept_and_the_reason_is_said(no_java: None):
    scores = score_captions(CANDIDATES, REFERENCES)
    assert set(scores.corpus) == NEED_NO_JAVA
    assert scores.skipped == {"METEOR": "no java found", "SPICE": "no java found"}


@pytest.mark.skipif(os.name != "posix", reason="a script stands for java")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.stderr.write('no jvm.cfg\\nat all'); sys.exit(3)", "code 3 (no jvm.cfg)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "code -11"),
    ],
)
def test_a_broken_java_is_named(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only_java(tmp_path, script, monkeypatch)
    scores = score_captions(CANDIDATES, REFERENCES, ("bleu", "meteor"))
    assert reason in scores.skipped["METEOR"]
    assert "\n" not in scores.skipped["METEOR"]
    assert "BLEU-4" in scores.corpus


@pytest.mark.skipif(os.name != "posix", reason="a script stands for java")
def test_a_java_that_does_not_answer_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    only_java(tmp_path, "import time; time.sleep(60)", monkeypatch)
    begun = time.monotonic()
    assert "does not answer" in (external.java_problem(seconds=0.5) or "")
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(os.name != "posix", reason="a script stands for java")
def test_a_java_that_tells_its_version_and_then_fails_loses_meteor_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    script = "import sys; sys.exit('-version' not in sys.argv)"
    only_java(tmp_path, script, monkeypatch)
    scores = score_captions(CANDIDATES, REFERENCES)
    assert set(scores.corpus) == NEED_NO_JAVA
    assert "METEOR broke off" in scores.skipped["METEOR"]
    # pycocoevalcap's class waits for its lock when it is deleted: a lock that is held stops us then
    deleted = threading.Thread(target=gc.collect, daemon=True)
    deleted.start()
    deleted.join(30)
    assert not deleted.is_alive()


@pytest.mark.skipif(os.name != "posix", reason="a script stands for java")
def test_a_meteor_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    only_java(tmp_path, "import time; time.sleep(60)", monkeypatch)
    begun = time.monotonic()
    with pytest.raises(external.Unavailable, match=r"more than 0\.5 s"):
        external.meteor(["a man"], [["a man"]], seconds=0.5)
    assert time.monotonic() - begun < 20


def test_without_pycocoevalcap_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(external, "java_problem", lambda: None)
    monkeypatch.setattr(external.importlib.util, "find_spec", lambda name: None)
    scores = score_captions(CANDIDATES, REFERENCES)
    assert set(scores.corpus) == NEED_NO_JAVA
    assert all("pip install 'xvlm[meteor]'" in reason for reason in scores.skipped.values())


def test_spice_downloads_nothing(monkeypatch: pytest.MonkeyPatch):
    spice = pytest.importorskip("pycocoevalcap.spice.get_stanford_models")
    if (Path(spice.__file__).parent / "lib" / "stanford-corenlp-3.6.0.jar").is_file():
        pytest.skip("its parser is here")
    monkeypatch.setattr(external, "java_problem", lambda: None)
    monkeypatch.setattr("urllib.request.urlretrieve", lambda *_, **__: pytest.fail("a download"))
    scores = score_captions(CANDIDATES, REFERENCES, ("spice",))
    assert "nothing is downloaded" in scores.skipped["SPICE"]
    assert not scores.corpus


@pytest.mark.slow  # it reads a table of paraphrases first
def test_meteor_where_java_works():
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    problem = external.java_problem()
    if problem is not None:
        pytest.skip(problem)
    references = {
        "a": ["a man on a horse", "man riding horse"],
        "b": ["two dogs running", "dogs run on grass"],
    }
    scores = score_captions({**CANDIDATES, "b": "two dogs run"}, references, ("meteor",))
    # as Java gave them when this was written
    assert scores.corpus["METEOR"] == pytest.approx(0.4512326328807551, abs=1e-12)
    assert scores.each["METEOR"] == pytest.approx([0.41089863, 0.82857143], abs=1e-8)


def refusal(candidates: dict, references: dict) -> DataError:
    with pytest.raises(DataError) as refused:
        score_captions(candidates, references, ("bleu",))
    assert refused.value.try_
    assert "\n" not in refused.value.what
    return refused.value


def test_pictures_without_references_or_caption_are_named():
    many = {f"p{i}": "a man" for i in range(6)}
    others = {f"p{i}": ["a man"] for i in range(6)}
    what = refusal({**many}, {**others, "p1": [], "p4": []}).what
    assert "no reference captions for p1, p4" in what
    what = refusal({"p0": "a man"}, others).what
    assert "no caption for p1, p2, p3 and 2 more" in what
    what = refusal({**many, **{f"q{i}": "a" for i in range(4)}}, others).what
    assert "not among the references: q0, q1, q2 and 1 more" in what


def test_captions_of_another_split_are_told_apart():
    what = refusal({"q1": "a", "q2": "b"}, {"p1": ["a"]}).what
    assert "none of the captioned pictures has references: q1, q2" in what


def test_nothing_to_score_is_refused():
    refusal({}, {})


def test_an_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="bleurt"):
        score_captions(CANDIDATES, REFERENCES, ("bleu", "bleurt"))


def test_empty_captions_are_scored():
    scores = score_captions({"a": "", "b": "..."}, REFERENCES, ("bleu", "rouge-l", "cider"))
    assert all(np.isfinite(each).all() for each in scores.each.values())
    assert scores.corpus["ROUGE-L"] == scores.corpus["CIDEr"] == 0
