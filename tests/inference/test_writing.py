from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.inference.conftest import picture
from tests.tasks.captions import write_captioner
from tests.tasks.pairs import write_pair_model
from xvlm_core.errors import CheckpointError, DataError, UsageError
from xvlm_core.inference.checkpoints import find_checkpoint
from xvlm_core.inference.generate import Sampling, Written, greedy
from xvlm_core.inference.reading import model_pixels
from xvlm_core.inference.writing import CaptionWriter, How, text_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioner(tmp_path_factory.mktemp("models") / "captions")


def writer(folder: Path, **how: object) -> CaptionWriter:
    return CaptionWriter.from_folder(folder, How(**how), "cpu")  # type: ignore[arg-type]


PICTURES = [picture(60, 40, seed).point(lambda v, s=seed: v * s // 4) for seed in range(5)]
HOWS: dict[str, dict[str, object]] = {
    "beam": {"beams": 4, "captions": 2},
    "greedy": {"search": "greedy"},
    "sample": {"search": "sample", "captions": 3, "sampling": Sampling(0.8, 20, 0.9)},
}


@pytest.mark.parametrize("how", list(HOWS))
def test_captions_do_not_depend_on_batches(folder: Path, how: str) -> None:
    each = [
        writer(folder, **HOWS[how]).describe_many(PICTURES, batch_size=size) for size in (1, 2, 5)
    ]
    for other in each[1:]:
        assert [c.text for c in other] == [c.text for c in each[0]]
        assert [o.text for c in other for o in c.others] == [
            o.text for c in each[0] for o in c.others
        ]
    assert len({round(caption.log_probability, 4) for caption in each[0]}) > 1
    assert {len(caption.others) for caption in each[0]} == {
        int(str(HOWS[how].get("captions", 1))) - 1
    }


def test_a_caption_is_what_the_model_writes_after_the_prompt(folder: Path) -> None:
    made = writer(folder, search="greedy", max_length=12)
    pixels = torch.from_numpy(model_pixels(PICTURES[0], 64))[None]
    with torch.no_grad():
        speaker = made.model.speaker(made.model.encode_pictures(pixels))
        (one,) = greedy(speaker, made.prompt, lengths_of(made))
    caption = made.describe(PICTURES[0])
    assert caption.text == made.tokenizer.decode(one.ids[4:]).removeprefix("##")
    assert caption.log_probability == pytest.approx(one.score, abs=1e-5)
    assert made.tokenizer.decode(one.ids).startswith("a picture of")
    assert "[" not in caption.text


def lengths_of(made: CaptionWriter) -> object:
    from xvlm_core.inference.generate import Lengths

    return Lengths(made.tokenizer.sep_id, made.how.max_length, made.how.min_length)


def test_the_best_of_several_comes_first(folder: Path) -> None:
    for how in ("beam", "sample"):
        for caption in writer(folder, **HOWS[how]).describe_many(PICTURES):
            scores = [caption.log_probability, *(o.log_probability for o in caption.others)]
            assert scores == sorted(scores, reverse=True)


def test_a_caption_of_beams_has_the_least_length(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for least in (6, 9):
        made = writer(folder, min_length=least, max_length=12)
        end = made.tokenizer.sep_id
        assert made.model.text.lm_head is not None
        with torch.no_grad():
            made.model.text.lm_head.bias[end] += 1e4
        monkeypatch.setattr(made.tokenizer, "decode", lambda ids: " ".join(map(str, ids)))
        said = made.describe(PICTURES[0]).text.split()
        assert len(said) == least - len(made.prompt) + 1, "it ends as soon as it may"
        assert said[-1] == str(end)


def test_samples_follow_the_seed(folder: Path) -> None:
    one, again, other = (
        [c.text for c in writer(folder, search="sample", seed=seed).describe_many(PICTURES)]
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_piece_of_a_word_at_the_beginning_is_a_word(folder: Path) -> None:
    tokenizer = writer(folder).tokenizer
    pieces = [i for i in range(tokenizer.vocab_size) if tokenizer.token(i).startswith("##")]
    if not pieces:
        pytest.skip("a vocabulary of whole words")
    text = text_of(Written((2, pieces[0], 3), 0.0), tokenizer, 1)
    assert not text.startswith("#")


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    for how in ({"max_length": 65}, {"max_length": 4}, {"captions": 4}):
        with pytest.raises(UsageError) as caught:
            writer(folder, **how)
        assert caught.value.try_
    with pytest.raises(CheckpointError, match="writes no captions"):
        CaptionWriter.from_folder(write_pair_model(tmp_path / "pairs"))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png"):
        writer(folder).describe(tmp_path / "bad.png")
    with pytest.raises(UsageError, match="batch size"):
        writer(folder).describe_many(PICTURES, batch_size=0)


def test_a_model_of_captions_is_found_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    assert find_checkpoint(folder, "captioning", {}, tmp_path).folder == folder
    pretrained = write_captioner(tmp_path / "lm", "caption_pretrain")
    assert find_checkpoint(pretrained, "captioning", {}, tmp_path).folder == pretrained
    assert CaptionWriter.from_folder(pretrained).prompt == (2,)
    with pytest.raises(CheckpointError, match="is for nlvr2, not for captioning"):
        find_checkpoint(write_pair_model(tmp_path / "pairs"), "captioning", {}, tmp_path)
    with pytest.raises(CheckpointError, match="no model for captioning"):
        find_checkpoint(None, "captioning", {}, tmp_path)


def test_pictures_come_as_files_too(folder: Path, tmp_path: Path) -> None:
    PICTURES[1].save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as opened:
        found = writer(folder).describe_many([tmp_path / "one.png", opened, PICTURES[1]])
    assert len({caption.text for caption in found}) == 1
