"""The figures of each task come with an interval over what was drawn together."""

from __future__ import annotations

import pytest

from xvlm_core.tasks import grounding_scores, nlvr2_eval, retrieval_eval
from xvlm_core.tasks.base import Prediction


def test_pairs_of_a_sentence_are_drawn_together() -> None:
    """100 sentences of four pairs each, all pairs of a sentence right, or none."""
    made: list[Prediction] = [
        {
            "id": f"{sentence}-{pair}",
            "label": True,
            "group": str(sentence),
            "probability": float(sentence % 2),
        }
        for sentence in range(100)
        for pair in range(4)
    ]
    together = nlvr2_eval.score(made, "val")
    half = 1.96 * (0.25 / 100) ** 0.5
    assert together["accuracy"].interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    assert together["consistency"].interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)
    alone = nlvr2_eval.score([{**p, "group": None} for p in made], "val")
    half = 1.96 * (0.25 / 400) ** 0.5
    assert alone["accuracy"].interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert together["baseline: majority"].interval is None


def test_texts_of_a_picture_are_drawn_together() -> None:
    """100 pictures of five texts each; the texts of every other one find their picture."""
    common = {"by_similarity": [], "candidates": 1, "among": 100}
    pictures = [f"p{n}" for n in range(100)]
    made: list[Prediction] = [
        {
            "id": p,
            "text": None,
            "right": [f"{p}#{k}" for k in range(5)],
            "ranking": [f"{p}#3"],
            **common,
        }
        for p in pictures
    ]
    made += [
        {
            "id": f"{p}#{k}",
            "text": "a text",
            "right": [p],
            "ranking": [p if n % 2 else "p0", p],
            **common,
        }
        for n, p in enumerate(pictures)
        if n
        for k in range(5)
    ]
    scores = retrieval_eval.score(made, "test")
    half = 1.96 * (0.25 / 99) ** 0.5
    assert scores["image R@1"].value == pytest.approx(50 / 99)
    assert scores["image R@1"].interval == pytest.approx(
        (50 / 99 - half, 50 / 99 + half), abs=0.025
    )
    assert scores["image R@5"].interval == (1, 1)
    assert scores["text R@1"].interval == (1, 1)
    assert scores["text R@1 by similarity"].interval == (0, 0)
    # the mean of six figures: five that are 1 or 0 in every draw, and that of image R@1
    low, high = scores["image R@1"].interval or (0, 0)
    assert scores["r_mean"].interval == pytest.approx(((5 + low) / 6, (5 + high) / 6), abs=0.002)
    assert scores["r_mean by similarity"].interval == (0, 0)


def test_both_directions_of_the_mean_recall_are_drawn_together() -> None:
    """Pictures and texts that fail together: the mean of the two spreads as far as each."""
    made: list[Prediction] = []
    for n in range(80):
        picture, text, found = f"p{n}", f"p{n}#0", n % 2
        common = {"by_similarity": [], "candidates": 1, "among": 80}
        made += [
            {
                "id": picture,
                "text": None,
                "right": [text],
                "ranking": [text] if found else [],
                **common,
            },
            {
                "id": text,
                "text": "t",
                "right": [picture],
                "ranking": [picture] if found else [],
                **common,
            },
        ]
    scores = retrieval_eval.score(made, "test")
    assert scores["r_mean"].value == 0.5
    assert scores["r_mean"].interval == pytest.approx(scores["text R@1"].interval, abs=1e-9)


def test_the_figures_of_presence_have_intervals_over_pictures() -> None:
    """40 pictures of three phrases each; in every other one the absent one is told apart."""
    made: list[Prediction] = []
    for n in range(40):
        common = {"image": f"i{n}", "record": f"i{n}", "like": "label", "kind": "label"}
        box = {"box_xyxy_px": (0, 0, 8, 8), "width": 9, "height": 9, "objects_xyxy_px": []}
        for k, there in enumerate((True, True, False)):
            made.append(
                {
                    "id": f"i{n}#{k}",
                    "present": there,
                    "probability": 0.6 if there else 0.1 + 0.8 * (n % 2),
                    "target_xyxy_px": (0, 0, 8, 8) if there else None,
                    "other_targets_xyxy_px": [],
                    **common,
                    **box,
                }
            )
    scores = grounding_scores.score(made, "val")
    for name in ("presence AUC", "presence ECE"):
        low, high = scores[name].interval or (0, 0)
        assert low < scores[name].value < high, name
    assert scores["presence AUC"].value == 0.5
    half = 1.96 * (0.25 / 40) ** 0.5
    assert scores["presence AUC"].interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)
