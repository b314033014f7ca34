"""``xvlm evaluate`` before a model is loaded: what is counted, where answers go, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import IO, Any

import pytest

from tests.cli.conftest import Run, write_model
from tests.tasks.pairs import write_pair_model
from xvlm_cli import output
from xvlm_cli.evaluate_plan import Asked
from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.manifest import MANIFEST, Manifest
from xvlm_core.data.store import Store
from xvlm_core.errors import OutputError
from xvlm_core.sources.prepare import prepare
from xvlm_core.tasks.evaluations import EVALUATED, evaluation_class


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of single pictures and pairs."""
    place = tmp_path_factory.mktemp("data") / "world"
    options = {"train": 6, "val": 5, "test": 0, "unseen": 0, "pairs": 8, "workers": 1, "size": 64}
    prepare("world", place, options, command="xvlm prepare-data world -o data/world")
    return place


def plan(xvlm: Run, *words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = xvlm("evaluate", *words, "--dry-run", "--json").document()["result"]
    return found


def made_from(store: Path, name: str, source: str, tmp_path: Path) -> Path:
    """The same records under the name and with the manifest of another data set."""
    folder = tmp_path / name
    shutil.copytree(store, folder)
    path = folder / MANIFEST
    manifest = Manifest.model_validate_json(path.read_bytes())
    command = f"xvlm prepare-data {source} FOLDER -o data/{name}"
    other = manifest.model_copy(update={"source": source, "command": command})
    path.write_text(other.sealed().model_dump_json())
    return folder


# ---------------------------------------------------------------------- counts


def test_pairs_and_pictures_of_one_store_are_counted_apart(
    xvlm: Run, mixed: Path, pretrained: Path, tmp_path: Path
) -> None:
    store = Store.open(mixed)
    val = [store[int(n)] for n in store.indices("val")]
    pairs = [record for record in val if record.statement is not None]
    pictures = [record for record in val if record.statement is None]
    assert pairs
    assert pictures
    judge = write_pair_model(tmp_path / "judge")
    words = ("-c", judge, "--data", mixed, "--split", "val")
    assert plan(xvlm, "nlvr2", *words)["splits"] == {"val": {"pairs": len(pairs)}}
    assert plan(xvlm, "nlvr2", *words, "--limit", "2")["splits"] == {"val": {"pairs": 2}}
    words = ("-c", pretrained, "--data", mixed, "--split", "val")
    found = plan(xvlm, "retrieval", *words)["splits"]["val"]
    texts = [text for record in pictures for text in record.captions]
    assert found == {"pictures": len(pictures), "texts": len(texts)}
    found = plan(xvlm, "weak_grounding", *words)["splits"]["val"]
    assert found["pictures"] == len(pictures)
    assert found["expressions"] > len(pictures)
    first = plan(xvlm, "weak_grounding", *words, "--limit", "1")["splits"]["val"]
    assert first["pictures"] == 1
    assert 0 < first["expressions"] < found["expressions"]


def test_what_is_planned_is_what_is_asked(xvlm: Run, mixed: Path, pretrained: Path) -> None:
    words = ("-c", pretrained, "--data", mixed, "--limit", "2", "--no-files")
    for task, kind in (("weak_grounding", "expressions"), ("retrieval", "texts")):
        planned = plan(xvlm, task, *words)["splits"]["val"]
        done = xvlm("evaluate", task, *words, "--json").document()["result"]
        names = ("accuracy@0.5",) if task == "weak_grounding" else ("image R@1", "text R@1")
        asked = [done["scores"][name]["n"] for name in names]
        if task == "retrieval":
            assert asked == [planned[kind], planned["pictures"]]
        else:  # absent ones among them
            assert done["presence"]["n"] == planned[kind] > asked[0]


@pytest.mark.parametrize("task", EVALUATED)
def test_every_task_has_an_evaluation_and_is_in_the_help(task: str, xvlm: Run) -> None:
    assert evaluation_class(task).NO_ANSWER
    assert task in xvlm("evaluate", "--help").out


# ---------------------------------------------------------------------- where answers go


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(folder: Path) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("xvlm_core.weights.folder.load_model_folder", never)


def test_a_place_that_cannot_be_written_is_said_before_a_model_is_looked_for(
    xvlm: Run, world_store: Path
) -> None:
    Path("file").write_text("in the way")
    for place in ("file/p.jsonl", f"new/{'x' * 300}.jsonl", f"{'x' * 300}/p.jsonl"):
        words = ("evaluate", "grounding", "-c", "no-model", "--data", world_store, "-o", place)
        said = xvlm(*words).refusal(2)
        assert "no place to write to" in said
        assert "no-model" not in said
    assert Path("file").read_text() == "in the way"
    assert not Path("new").exists(), "trying leaves nothing"


def test_a_place_is_tried_without_leaving_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.require_writable(tmp_path / "a" / "b" / "c.jsonl")
    assert list(tmp_path.iterdir()) == []
    tried: list[Path] = []

    def refuse(dir: Path) -> IO[bytes]:
        tried.append(dir)
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OutputError, match="not permitted") as caught:
        output.require_writable(tmp_path / "a" / "b.jsonl")
    assert tried == [tmp_path]
    assert caught.value.where == str(tmp_path / "a" / "b.jsonl")
    monkeypatch.undo()
    with pytest.raises(OutputError, match="no place"):
        output.require_writable(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="no place"):
        output.require_writable(tmp_path / "link" / "p.jsonl")


def test_the_place_beside_the_model_is_tried_before_its_weights_are_read(
    xvlm: Run, world_store: Path, tmp_path: Path, no_weights: None
) -> None:
    own = write_model(tmp_path / "own")
    (own / "evaluations").write_text("in the way")
    Path("evaluations").write_text("in the way, too")
    words = ("evaluate", "grounding", "-c", own, "--data", world_store)
    said = xvlm(*words).refusal(2)
    assert "predictions go to evaluations/" in said
    assert "no place to write to" in said


def test_another_scoring_has_another_file(xvlm: Run, world_store: Path, pretrained: Path) -> None:
    words = ("world-retrieval", "-c", pretrained, "--data", world_store, "--split", "val")
    names = [
        plan(xvlm, *words[:1], *more, *words[1:])["write"]
        for more in ((), ("scoring.candidates=2",), ("scoring.candidates=256",))
    ]
    assert len({name for (name,) in names}) == 3
    plain = plan(xvlm, "retrieval", *words[1:])["write"]
    assert plain == names[2], "the default has the plain name"
    assert plain[0].endswith("evaluations/retrieval-world-val.jsonl")
    first, second = (
        xvlm("evaluate", *words[:1], *more, *words[1:], "--json").document()["result"]
        for more in (("scoring.candidates=1",), ("scoring.candidates=2",))
    )
    assert (first["scoring"]["candidates"], second["scoring"]["candidates"]) == (1, 2)
    asked = [
        json.loads(Path(one["predictions"]).read_text().splitlines()[0])["candidates"]
        for one in (first, second)
    ]
    assert asked == [1, 2], "one did not take the place of the other"


@pytest.mark.parametrize(
    ("task", "scoring", "said"),
    [
        ("grounding", {"candidates": 3, "cam_layer": 5, "proposals": ("p",)}, ""),
        ("weak_grounding", {"candidates": 3}, ""),
        ("weak_grounding", {"compat": "official"}, "-compat_official"),
        (
            "weak_grounding",
            {"cam_layer": 9, "proposals": ("d/dets+", "s3://a/b/")},
            "-layer9-dets+-b",
        ),
    ],
)
def test_a_file_is_named_by_what_changes_the_answers(
    task: str, scoring: dict[str, Any], said: str, world_store: Path
) -> None:
    stores = (Store.open(world_store),)
    asked = Asked(task, None, (world_store,), stores, ("val",), None, ScoringSection(**scoring))
    assert asked.file_name("val", None) == f"{task}-world-val{said}.jsonl"
    assert asked.file_name("val", 3) == f"{task}-world-val{said}-first3.jsonl"


# ---------------------------------------------------------------------- how it is scored


@pytest.mark.parametrize(("name", "k"), [("flickr30k", 128), ("coco-karpathy", 256)])
def test_a_data_set_of_the_paper_is_ranked_as_its_recipe_ranks_it(
    name: str, k: int, xvlm: Run, world_store: Path, pretrained: Path, tmp_path: Path
) -> None:
    store = made_from(world_store, name, "karpathy", tmp_path)
    words = ("evaluate", "retrieval", "-c", pretrained, "--data", store, "--dry-run", "--json")
    done = xvlm(*words)
    assert done.document()["result"]["scoring"]["candidates"] == k
    assert f"scoring.candidates={k}, as recipe finetune/" in done.err


def test_own_data_are_ranked_by_default_whatever_their_name_is(
    xvlm: Run, world_store: Path, pretrained: Path, tmp_path: Path
) -> None:
    shutil.copytree(world_store, tmp_path / "flickr30k")
    found = plan(xvlm, "retrieval", "-c", pretrained, "--data", tmp_path / "flickr30k")
    assert found["scoring"]["candidates"] == ScoringSection().candidates == 256
    store = made_from(world_store, "other", "karpathy", tmp_path)
    named = plan(xvlm, "flickr30k", "scoring.candidates=7", "-c", pretrained, "--data", store)
    assert named["scoring"]["candidates"] == 7


# ---------------------------------------------------------------------- early refusals


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("grounding", "-p", "gone.jsonl"), 4, "gone.jsonl cannot be read"),
        (("world-weak", "scoring.proposals=[gone]"), 4, "gone"),
        (("grounding", "--device", "tpu"), 2, "no such device"),
        (("grounding", "--calibrate-on", "train"), 2, "trained on"),
        (("nlvr2",), 4, "no pair of pictures"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_looked_for(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, world_store: Path
) -> None:
    said = xvlm("evaluate", *words, "--data", world_store, "-c", "no-such-model").refusal(code)
    assert says in said
    assert "no-such-model" not in said


def test_a_scoring_that_the_model_cannot_do_is_refused_before_its_weights_are_read(
    xvlm: Run, world_store: Path, pretrained: Path, no_weights: None
) -> None:
    words = ("world-weak", "scoring.cam_layer=77", "-c", pretrained, "--data", world_store)
    assert "layer 77 attends to no picture" in xvlm("evaluate", *words).refusal(3)
