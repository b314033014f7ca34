from __future__ import annotations

import pytest
import yaml

from tests.models.shapes import bench_config
from xvlm_core.weights.folder import ModelInfo
from xvlm_core.weights.model_card import model_card
from xvlm_core.weights.provenance import Provenance, ScoreRecord, Start

INFO = ModelInfo(
    task="grounding",
    about="X-VLM test, fine-tuned\n<script>",
    trained_on="mine (jsonl)",
    max_words=8,
    max_tokens=8,
    config=bench_config(),
)
MADE = Provenance(
    task="grounding",
    recipe_name="finetune/refcoco+",
    recipe_sha256="f00d",
    run="one",
    step=1200,
    stores={"mine": "abc"},
    scores={
        "accuracy@0.5": ScoreRecord(value=0.5, split="val", convention="a|b", n=1234),
        "broken": ScoreRecord(value=None),
    },
    started_from=Start(
        place="hub:owner/base@1",
        weights_sha256="beef",
        provenance=Provenance(
            task="pretrain", recipe_name="pretrain/4m", step=200, stores={"coco": "def"}
        ),
    ),
    versions={"xvlm": "1"},
    command="xvlm finetune refcoco+",
)


def test_a_page_tells_use_data_scores_and_provenance() -> None:
    page = model_card(INFO, MADE, "owner/name")
    for said in (
        "# name\n",
        "pip install xvlm",
        "--checkpoint owner/name --download",
        "--init owner/name init.download=true",
        "| grounding, step 1,200 | mine | `abc` |",
        "| pretrain, step 200 | coco | `def` |",
        "| accuracy@0.5 | 0.5000 | val | 1,234 | a\\|b |",
        "| broken | not finite |",
        "Fractions, not per cent.",
        "finetune/refcoco+ (SHA-256 `f00d`)",
        "hub:owner/base@1 (SHA-256 of its weights `beef`)",
    ):
        assert said in page, page
    assert "<script" not in page
    assert yaml.safe_load(page.split("---\n")[1])["pipeline_tag"] == "zero-shot-object-detection"


@pytest.mark.parametrize("heads", [("box", "matching"), ("matching",)])
def test_what_is_not_known_is_not_claimed(heads: tuple[str, ...]) -> None:
    config = bench_config().model_copy(update={"heads": heads})
    info = INFO.model_copy(update={"trained_on": "", "config": config})
    page = model_card(info, None, "owner/name")
    assert "Trained on: not recorded." in page
    assert "## Scores\n\nNot recorded" in page
    assert "## Provenance\n\nNot recorded." in page
    assert ("xvlm predict" in page) == ("box" in heads)


@pytest.mark.parametrize("answers", [("yes", "no"), ()])
def test_the_page_of_a_model_that_answers_says_how_to_ask_it(answers: tuple[str, ...]) -> None:
    config = bench_config().model_copy(update={"heads": (), "decoder_layers": 2})
    info = INFO.model_copy(update={"task": "vqa", "config": config, "answers": answers})
    page = model_card(info, None, "owner/name")
    assert "xvlm predict vqa image.jpg" in page
    assert ("--open" in page) == (not answers)
    assert "xvlm finetune vqa --init owner/name" in page
