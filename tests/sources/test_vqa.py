from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.data.ledger import CHOICES
from xvlm_core.data.records import Answer, Question
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.drafts import Draft, Lost
from xvlm_core.sources.registry import checked_options, find_source

SHARED = Path(__file__).parents[3] / "shared" / "data"

TEN = ["red"] * 7 + ["Red.", "a red one", "dark red"]


def question(id: int, image: int, text: object = "What color?") -> dict[str, Any]:
    return {"question_id": id, "image_id": image, "question": text}


def annotation(id: int, image: int, answers: object = None) -> dict[str, Any]:
    answers = TEN if answers is None else answers
    if isinstance(answers, list):
        answers = [{"answer": a, "answer_id": n} for n, a in enumerate(answers, 1)]
    kinds = {"question_type": "what color", "answer_type": "other"}
    return {"question_id": id, "image_id": image, "answers": answers, **kinds}


def write_vqa(folder: Path, subset: str, questions: list[Any], annotations: list[Any]) -> None:
    head = {"info": {"version": "2.0"}, "data_subtype": subset}
    name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
    (folder / name).write_text(json.dumps({**head, "questions": questions}))
    if annotations:
        name = f"v2_mscoco_{subset}_annotations.json"
        (folder / name).write_text(json.dumps({**head, "annotations": annotations}))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def coco(root: Path, subset: str, *ids: int) -> None:
    for id in ids:
        picture(root / subset / f"COCO_{subset}_{id:012d}.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VQA with two training pictures, one of validation, one of test (and test-dev)."""
    root = tmp_path / "vqa"
    root.mkdir()
    write_vqa(
        root,
        "train2014",
        [question(9001, 9), question(8000, 8, "Is it?"), question(9000, 9, "How many?")],
        [
            annotation(9000, 9, ["2"] * 9 + ["two"]),
            annotation(9001, 9),
            annotation(8000, 8, ["yes"] * 10),
        ],
    )
    write_vqa(root, "val2014", [question(7000, 7)], [annotation(7000, 7, ["blue"] * 10)])
    write_vqa(root, "test2015", [question(6000, 6), question(6001, 6)], [])
    write_vqa(root, "test-dev2015", [question(6001, 6)], [])
    coco(root, "train2014", 8, 9)
    coco(root, "val2014", 7)
    coco(root, "test2015", 6)
    return root


def by_id(done: Prepared) -> dict[str, Question]:
    return {q.id: q for record in done.records for q in record.questions}


def answers(*pairs: tuple[str, float]) -> tuple[Answer, ...]:
    return tuple(Answer(text, weight) for text, weight in pairs)


def test_questions_of_a_picture_are_one_record_with_shares_of_answers(
    root: Path, prepare_store: Prepare
) -> None:
    done = prepare_store("vqa", {"root": root})
    first = done.records[0]
    assert (first.id, first.split, first.source) == ("train/9", "train", "vqa")
    assert first.image == "train2014/COCO_train2014_000000000009.jpg"
    assert first.same_as == ("coco:9",)
    assert [q.question for q in first.questions] == ["What color?", "How many?"]
    assert first.questions[0].id == "9001"
    assert first.questions[0].answers == answers(
        ("red", 0.7), ("Red.", 0.1), ("a red one", 0.1), ("dark red", 0.1)
    )
    assert first.meta == {
        "types": {"9001": ["what color", "other"], "9000": ["what color", "other"]}
    }
    assert [r.id for r in done.records] == [
        "train/9",
        "train/8",
        "val/7",
        "test-dev/6",
        "test/6",
    ]
    assert done.manifest.splits == {"train": 2, "val": 1, "test": 1, "test-dev": 1}
    assert done.count("question") == {"read": 7, "kept": 7, "dropped": {}, "repaired": {}}


def test_test_questions_have_no_answers_and_are_kept(root: Path, prepare_store: Prepare) -> None:
    record = next(r for r in prepare_store("vqa", {"root": root}).records if r.id == "test/6")
    assert [(q.id, q.answers) for q in record.questions] == [("6000", ()), ("6001", ())]
    assert record.image == "test2015/COCO_test2015_000000000006.jpg"


ODD_TENS = [
    TEN,
    ["yes"] * 10,
    [str(n) for n in range(10)],
    ["no"] * 3 + ["No"] * 3 + ["no."] * 3 + ["n/a"],
    ["a", "b", "c"] * 3 + ["a"],
]


@pytest.mark.parametrize("given", ODD_TENS)
def test_the_ten_answers_of_people_can_be_told_from_the_store(
    root: Path, prepare_store: Prepare, given: list[str]
) -> None:
    write_vqa(root, "train2014", [question(9000, 9)], [annotation(9000, 9, given)])
    asked = by_id(prepare_store("vqa", {"root": root}))["9000"]
    told = Counter({a.answer: round(10 * a.weight) for a in asked.answers})
    assert told == Counter(given)


def test_another_number_of_people_is_told(root: Path, prepare_store: Prepare) -> None:
    given = ["yes", "no", "yes", "a", "b", "yes", "maybe"]
    write_vqa(root, "train2014", [question(9000, 9)], [annotation(9000, 9, given)])
    record = prepare_store("vqa", {"root": root}).records[0]
    assert record.meta["people"] == {"9000": 7}
    told = Counter({a.answer: round(7 * a.weight) for a in record.questions[0].answers})
    assert told == Counter(given)


def test_answers_without_a_word_are_left_out_but_count_as_people(
    root: Path, prepare_store: Prepare
) -> None:
    given = ["yes"] * 8 + ["?", "?"]
    rows = [annotation(9000, 9, given), annotation(8000, 8, ["?"] * 10)]
    write_vqa(root, "train2014", [question(9000, 9), question(8000, 8)], rows)
    done = prepare_store("vqa", {"root": root})
    assert by_id(done)["9000"].answers == answers(("yes", 0.8))
    assert done.lost("question") == {"8000": "no answer with a word"}
    assert "no answer with a word" in CHOICES, "people write '?': nothing is damaged"
    assert done.count("question")["repaired"] == {"answer without a word left out": 2}


def test_what_belongs_to_nothing_is_lost_with_its_reason(
    root: Path, prepare_store: Prepare
) -> None:
    asked = [
        question(9000, 9),
        question(9001, 9),
        question(9000, 9, "Again?"),
        question(8000, 8),
        question(8001, 8, None),
        question(8002, 8),
        question(8003, 8),
        question(8004, 8, "?"),
        question(5000, 5),
        {"question": "Where?"},
        "a question",
    ]
    rows = [
        annotation(9000, 9),
        annotation(9000, 9),
        annotation(8000, 9),
        annotation(8001, 8),
        annotation(8002, 8, []),
        annotation(8003, 8, ["yes", None]),
        annotation(8004, 8),
        annotation(5000, 5),
        annotation(1234, 8),
        {"answers": []},
    ]
    write_vqa(root, "train2014", asked, rows)
    write_vqa(root, "val2014", [question(7000, 7), question(7001, 7)], [annotation(7001, 7)])
    done = prepare_store("vqa", {"root": root})
    file = "v2_OpenEnded_mscoco_train2014_questions.json"
    notes = "v2_mscoco_train2014_annotations.json"
    assert done.lost("question") == {
        "9000": "repeated id",
        "9001": "question without annotation",
        "8000": "annotation of another picture",
        "8001": "text malformed",
        "8002": "no answer",
        "8003": "malformed answers",
        "8004": "empty text",
        "5000": "picture: missing",
        f"{file}: questions[9]": "no id",
        f"{file}: questions[10]": "not an object",
        f"{notes}: annotations[1]": "repeated id",
        f"{notes}: annotations[9]": "no id",
        "1234": "annotation without question",
        "7000": "question without annotation",
    }
    assert sorted(by_id(done)) == ["6000", "6001", "7001", "9000"]
    assert done.lost("picture") == {"train/5": "missing", "train/8": "no text left"}


def test_the_answer_list_is_built_from_training_answers(
    root: Path, prepare_store: Prepare, tmp_path: Path
) -> None:
    prepare_store("vqa", {"root": root})
    built = json.loads((tmp_path / "store-0" / "answers.json").read_text())
    assert built == {
        "answers": ["2", "yes", "red", "dark red", "red 1"],
        "source": "built",
        "coverage": 1.0,
    }
    prepare_store("vqa", {"root": root, "answer_list_size": 2})
    built = json.loads((tmp_path / "store-1" / "answers.json").read_text())
    assert built == {"answers": ["2", "yes"], "source": "built", "coverage": round(20 / 30, 16)}
    prepare_store("vqa", {"root": root, "answer_min_count": 8, "answers_from": "train+val"})
    built = json.loads((tmp_path / "store-2" / "answers.json").read_text())
    assert built["answers"] == ["2", "blue", "yes", "red"]
    assert built["coverage"] == round(28 / 30, 16)


def test_a_given_answer_list_is_kept_and_all_answers_of_training_too(
    root: Path, prepare_store: Prepare, tmp_path: Path
) -> None:
    given = tmp_path / "list.txt"
    given.write_text("Red\nyes\nA Bike\n")
    done = prepare_store("vqa", {"root": root, "answer_list": given})
    content = json.loads((tmp_path / "store-0" / "answers.json").read_text())
    assert content["answers"] == ["Red", "yes", "A Bike"]
    assert (content["source"], content["coverage"]) == ("given", 0.6)
    assert by_id(done)["9000"].answers == answers(("2", 0.9), ("two", 0.1))


def test_test_questions_alone_need_no_answer_list(
    root: Path, prepare_store: Prepare, tmp_path: Path
) -> None:
    files = [root / "v2_OpenEnded_mscoco_test2015_questions.json"]
    prepare_store("vqa", {"annotations": files, "images": root})
    assert not (tmp_path / "store-0" / "answers.json").exists()


def test_named_files_find_their_annotations_and_split_can_be_said(
    root: Path, prepare_store: Prepare
) -> None:
    file = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    done = prepare_store("vqa", {"annotations": [file], "images": root, "split": "mine"})
    assert [(r.id, r.split) for r in done.records] == [("val/7", "mine")]
    assert by_id(done)["7000"].answers == answers(("blue", 1.0))


@pytest.mark.parametrize("name", ["val2017/{}.jpg", "images/val2014/COCO_val2014_{}.jpg", "{}.jpg"])
def test_other_names_of_coco_pictures_are_found(
    root: Path, tmp_path: Path, prepare_store: Prepare, name: str
) -> None:
    images = tmp_path / "coco"
    picture(images / name.format("000000000007"))
    file = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    done = prepare_store("vqa", {"annotations": [file], "images": images})
    assert done.records[0].image == name.format("000000000007")


def test_the_subset_may_be_told_by_the_file_or_by_its_name(
    root: Path, prepare_store: Prepare
) -> None:
    asked = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    notes = root / "v2_mscoco_val2014_annotations.json"
    content = json.loads(notes.read_text())
    del content["data_subtype"]
    notes.write_text(json.dumps(content))
    named = asked.rename(root / "mine.json")
    done = prepare_store("vqa", {"annotations": [named, notes], "images": root})
    assert by_id(done)["7000"].answers == answers(("blue", 1.0))


# ---------------------------------------------------------------------- Visual Genome


def write_vg(folder: Path) -> Path:
    def qa(id: int, answer: object) -> dict[str, Any]:
        return {"qa_id": id, "image_id": 51, "question": "What?", "answer": answer, "q_objects": []}

    path = folder / "question_answers.json"
    first = [qa(9000, "Red."), qa(31, "On a dirt  road. "), qa(32, None), "no object"]
    entries = [{"id": 51, "qas": first}, {"id": 52, "qas": [qa(33, "U.S.A.")]}, {"qas": []}]
    path.write_text(json.dumps([*entries, {"id": 51, "qas": [qa(34, "Again.")]}]))
    picture(folder / "VG_100K" / "51.jpg")
    picture(folder / "VG_100K_2" / "52.jpg")
    return path


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    folder = tmp_path / "genome"
    folder.mkdir()
    write_vg(folder)
    names = [{"image_id": 51, "coco_id": 777, "flickr_id": 4127484314}]
    (folder / "image_data.json").write_text(json.dumps(names))
    return folder


def test_visual_genome_is_added_from_another_folder(
    root: Path, genome: Path, prepare_store: Prepare, tmp_path: Path
) -> None:
    options = {"root": root, "vg": genome / "question_answers.json"}
    done = prepare_store("vqa", options)
    assert Path(done.manifest.image_root) == tmp_path.resolve()
    record = next(r for r in done.records if r.id == "vg/51")
    assert record.image == "genome/VG_100K/51.jpg"
    assert (record.split, record.same_as) == ("train", ("coco:777", "flickr:4127484314", "vg:51"))
    assert record.questions == (
        Question("vg-9000", "What?", answers(("red", 0.5))),
        Question("vg-31", "What?", answers(("on a dirt road", 0.5))),
    )
    other = next(r for r in done.records if r.id == "vg/52")
    assert (other.image, other.same_as) == ("genome/VG_100K_2/52.jpg", ("vg:52",))
    assert other.questions[0].answers == answers(("u.s.a", 0.5))
    assert done.records[0].image == "vqa/train2014/COCO_train2014_000000000009.jpg"
    assert done.lost("question") == {
        "vg-32": "no answer",
        "question_answers.json[0]#3": "not an object",
        "question_answers.json[2]": "no image",
        "vg-34": "repeated picture",
    }


def test_answers_of_visual_genome_are_not_in_the_answer_list(
    root: Path, genome: Path, prepare_store: Prepare, tmp_path: Path
) -> None:
    prepare_store("vqa", {"root": root, "vg": genome / "question_answers.json"})
    content = json.loads((tmp_path / "store-0" / "answers.json").read_text())
    assert "on dirt road" not in content["answers"]


def test_folders_may_be_links(root: Path, genome: Path, prepare_store: Prepare) -> None:
    real, other = root.parent / "real", root.parent / "elsewhere"
    real.mkdir()
    other.mkdir()
    root, genome = root.rename(real / "vqa"), genome.rename(real / "genome")
    (other / "coco").symlink_to(root)
    (other / "vg").symlink_to(genome)
    options = {
        "root": root,
        "images": other / "coco",
        "vg": genome / "question_answers.json",
        "vg_images": other / "vg",
    }
    assert prepare_store("vqa", options).dropped("picture") == {}


def test_visual_genome_alone(genome: Path, prepare_store: Prepare) -> None:
    done = prepare_store("vqa", {"vg": genome / "question_answers.json"})
    assert [r.image for r in done.records] == ["VG_100K/51.jpg", "VG_100K_2/52.jpg"]


# ---------------------------------------------------------------------- lists of X-VLM


def write_lists(folder: Path) -> Path:
    folder.mkdir()
    image = "train2014/COCO_train2014_000000000009.jpg"
    train = [
        {"question_id": 9001, "question": "What color?", "image": image, "answer": TEN},
        {"question_id": 9000, "question": "How many?", "image": image, "answer": ["2"] * 10},
        {"question_id": 9002, "question": "No answer?", "image": image},
        {"question_id": 9003, "question": "No picture?", "answer": ["2"] * 10},
    ]
    listed = {"question_id": 6000, "question": "Where?", "image": image.replace("9", "6")}
    test = [{**listed, "image": "test2015/COCO_test2015_000000000006.jpg", "dataset": "vqa"}]
    vg = [{"image": "image/51.jpg", "question": "What?", "answer": "red", "dataset": "vg"}] * 2
    for name, members in (("vqa_train", train), ("vqa_test", test), ("vg_qa", vg)):
        (folder / f"{name}.json").write_text(json.dumps(members))
    return folder


def test_lists_of_xvlm(root: Path, genome: Path, tmp_path: Path, prepare_store: Prepare) -> None:
    lists = write_lists(tmp_path / "lists")
    done = prepare_store("vqa", {"root": lists, "images": root, "vg_images": genome})
    assert [(r.id, r.split, r.same_as[0]) for r in done.records] == [
        ("train/9", "train", "coco:9"),
        ("test/6", "test", "coco:6"),
        ("vg/51", "train", "coco:777"),
    ]
    assert done.records[0].questions[0] == Question(
        "9001",
        "What color?",
        answers(("red", 0.7), ("Red.", 0.1), ("a red one", 0.1), ("dark red", 0.1)),
    )
    assert done.records[2].image == "genome/VG_100K/51.jpg"
    assert [(q.id, q.answers) for q in done.records[2].questions] == [
        ("vg_qa-0", answers(("red", 0.5))),
        ("vg_qa-1", answers(("red", 0.5))),
    ]
    assert done.lost("question") == {"9002": "no answer", "vqa_train-3": "no image"}


def test_a_list_with_one_text_as_answer_has_that_answer(
    root: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    image = "val2014/COCO_val2014_000000000007.jpg"
    path = tmp_path / "vlue_test.json"
    path.write_text(
        json.dumps([{"question_id": "a-1", "question": "Is it?", "image": image, "answer": "yes"}])
    )
    record = prepare_store("vqa", {"annotations": [path], "images": root}).records[0]
    assert record.questions == (Question("a-1", "Is it?", answers(("yes", 1.0))),)
    assert (record.split, record.meta) == ("test", {"people": {"a-1": 1}})


def test_pictures_of_a_list_stay_inside_the_image_root(
    root: Path, genome: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    (tmp_path / "secret.jpg").write_bytes((root / "val2014").glob("*").__next__().read_bytes())
    lists = write_lists(tmp_path / "lists")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "val2014/COCO_val2014_000000000007.jpg"]
    members = [{"image": p, "question": "Is it?", "answer": ["yes"]} for p in paths]
    (lists / "vqa_train.json").write_text(json.dumps(members))
    done = prepare_store("vqa", {"root": lists, "images": root, "vg_images": genome})
    assert done.dropped("picture") == {"outside the image root": 1, "absolute path": 1}


# ---------------------------------------------------------------------- mistakes


def plan(**options: Any) -> Any:
    source = find_source("vqa")
    values = checked_options(source, options)
    return source.plan({option.name: values[option.name] for option in source.options})


def refused(**options: Any) -> DataError:
    with pytest.raises(DataError) as error:
        plan(**options)
    return error.value


def test_nothing_said_is_a_usage_error(root: Path) -> None:
    with pytest.raises(UsageError, match="where the questions are"):
        plan()
    with pytest.raises(UsageError, match="where the pictures are") as error:
        plan(annotations=[root / "v2_OpenEnded_mscoco_test2015_questions.json"])
    assert "--images" in str(error.value.try_)


def test_wrong_folders_are_named(root: Path, genome: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    error = refused(root=tmp_path / "none")
    assert f"there is no folder {tmp_path / 'none'}" == error.what
    error = refused(root=empty)
    assert "OpenEnded_mscoco_*_questions.json in" in error.what
    assert str(empty) in error.what
    error = refused(root=root, images=empty)
    assert "none of the first 2 pictures of v2_OpenEnded_mscoco_train2014" in error.what
    assert "train2014/COCO_train2014_000000000009.jpg" in error.what
    assert "--images FOLDER" in str(error.try_)
    error = refused(root=root, vg=genome / "question_answers.json", vg_images=empty)
    assert "question_answers.json" in error.what
    assert "--vg-images" in str(error.try_)
    moved = (genome / "question_answers.json").rename(empty / "question_answers.json")
    error = refused(root=root, vg=moved)
    assert str(moved) in error.what
    assert "--vg-images" in str(error.try_)


def test_questions_without_their_file_of_answers_are_refused(root: Path) -> None:
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    error = refused(root=root)
    assert "*mscoco_val2014_annotations.json" in error.what
    error = refused(annotations=[root / "v2_mscoco_train2014_annotations.json"], images=root)
    assert "none of the files" in error.what
    assert "train2014_questions.json" in str(error.try_)


def test_both_forms_in_one_folder_are_refused(root: Path) -> None:
    (root / "vqa_train.json").write_text("[]")
    assert "has the questions twice" in refused(root=root).what


def test_files_in_another_form_are_refused(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps([{"picture": "a.jpg", "question": "Is it?"}]))
    error = refused(annotations=[path], images=root)
    assert str(path) in error.what
    assert "picture, question" in str(error.where)
    path.write_text('{"images": []}')
    assert "neither questions nor annotations" in refused(annotations=[path], images=root).what
    path.write_text('{"questions": [{"question_id": 1, "image_id": 7, "question": "Is it?"}]}')
    assert "no data_subtype" in refused(annotations=[path], images=root).what
    path.write_text("")
    assert "is an empty file" in refused(annotations=[path], images=root).what
    error = refused(annotations=[tmp_path / "none.json"], images=root)
    assert "cannot read" in error.what
    assert "none.json" in error.what


def test_truncated_files_are_refused(root: Path) -> None:
    path = root / "v2_mscoco_train2014_annotations.json"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"v2_mscoco_train2014_annotations\.json is not valid JSON"):
        list(plan(root=root).events)


def test_the_first_version_beside_the_second_is_left_aside(root: Path) -> None:
    for path in list(root.glob("v2_*train2014*")):
        (root / path.name.removeprefix("v2_")).write_bytes(path.read_bytes())
    drafts = [e for e in plan(root=root).events if isinstance(e, Draft | Lost)]
    assert all(isinstance(e, Draft) for e in drafts)
    assert len(drafts) == 5


# ---------------------------------------------------------------------- the shared samples


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared samples")
def test_shared_samples_have_the_expected_counts_in_either_form(prepare_store: Prepare) -> None:
    expected = json.loads((SHARED / "expected_counts.json").read_text())["files"]
    images, genome = SHARED / "coco_2014_images", SHARED / "visual_genome"
    vg = SHARED / "vqa" / "question_answers.json"
    folders = {"images": images, "vg_images": genome}
    raw = prepare_store("vqa", {"root": SHARED / "vqa", "vg": vg, **folders})
    listed = prepare_store("vqa", {"root": SHARED / "vqa" / "xvlm", **folders})
    for done, splits in (
        (
            raw,
            {
                "train": "vqa/v2_OpenEnded_mscoco_train2014_questions.json",
                "val": "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
                "test": "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
                "vg": "vqa/question_answers.json",
            },
        ),
        (
            listed,
            {
                "train": "vqa/xvlm/vqa_train.json",
                "val": "vqa/xvlm/vqa_val.json",
                "test": "vqa/xvlm/vqa_test.json",
                "vg": "vqa/xvlm/vg_qa.json",
            },
        ),
    ):
        for split, name in splits.items():
            records = [r for r in done.records if r.id.startswith(f"{split}/")]
            assert len(records) == expected[name]["images"], name
            assert sum(len(r.questions) for r in records) == expected[name]["questions"], name
        assert done.dropped("question") == {}
        for split, subset in (("train", "train2014"), ("val", "val2014")):
            shares = [
                a.weight
                for r in done.records
                if r.id.startswith(f"{split}/")
                for q in r.questions
                for a in q.answers
            ]
            name = f"vqa/v2_mscoco_{subset}_annotations.json"
            assert sum(round(10 * share) for share in shares) == expected[name]["answers"]

    def content(done: Prepared) -> dict[str, Any]:
        return {
            r.id: (r.images, r.split, r.same_as, [(q.question, q.answers) for q in r.questions])
            for r in done.records
        }

    assert content(raw) == content(listed)
