"""What retrieval computes, under the names of its recorded case: by the code of the task."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import packed
from tests.golden.step import Reproduced
from tests.golden.task_case import TaskCase
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.matching import Negatives, negative_weights
from xvlm_core.tasks.base import Prediction
from xvlm_core.tasks.pretrain_forward import Wanted, pretrain_forward
from xvlm_core.tasks.retrieval import retrieval_losses
from xvlm_core.tasks.retrieval_eval import RetrievalEvaluation
from xvlm_core.tasks.retrieval_passes import CollectionBatch, TextItem

INPUTS = {
    "image",
    "text_ids",
    "text_atts",
    "idx",
    "itm_image_neg_idx",
    "itm_text_neg_idx",
    "eval_image",
    "eval_text_ids",
    "eval_text_atts",
}
TOKENIZER = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
K = 3


def batch_of(case: TaskCase) -> PretrainBatch:
    io = case.io
    texts = packed(io["text_ids"], io["text_atts"])
    n = texts.packing.n_texts
    keys = torch.zeros(n, 3, dtype=torch.int64)
    keys[:, 2] = io["idx"] + 1  # 0 is of no picture
    return PretrainBatch(
        pictures_ICHW=io["image"],
        texts=texts,
        picture_of_text_B=torch.arange(n),
        mask_BP=None,
        boxes_cxcywh_B4=torch.zeros(n, 4),
        is_region_B=torch.zeros(n, dtype=torch.bool),
        keys_B3=keys,
        masked=texts,
        masked_token_M=torch.zeros(0, dtype=torch.int64),
        masked_label_M=torch.zeros(0, dtype=torch.int64),
        record_ids=tuple(str(i) for i in range(n)),
    )


def step(case: TaskCase) -> dict[str, Reproduced]:
    io, model, batch = case.io, case.model, batch_of(case)
    assert isinstance(model, XVLM)
    every = torch.ones(len(io["idx"]), dtype=torch.bool)
    given = Negatives(io["itm_image_neg_idx"], io["itm_text_neg_idx"], every, every)
    wanted = Wanted(masked_lm=False, box=False)
    out = pretrain_forward(model, batch, wanted, negatives=given)
    assert out.similarity_GG is not None
    assert out.match_logits_R2 is not None
    losses = retrieval_losses(out, official=True)
    excluded = batch.excluded_BB
    features = model.encode_pictures(batch.pictures_ICHW)
    return {
        "image_feat": Reproduced(model.picture_features(features, model.whole(len(features)))),
        "text_feat": Reproduced(model.text_features(model.encode_texts(batch.texts).first())),
        "itm_weights_t2i": Reproduced(negative_weights(out.similarity_GG.T, excluded.T)),
        "itm_weights_i2t": Reproduced(negative_weights(out.similarity_GG, excluded)),
        "itm_logits": Reproduced(out.match_logits_R2),
        "loss_itc": Reproduced(losses["contrastive"]),
        "loss_itm": Reproduced(losses["matching"]),
    }


def evaluation(case: TaskCase, *, pictures_a_batch: int = 2) -> dict[str, Reproduced]:
    """The passes over the recorded collection, which no store holds: its batches are made here."""
    io = case.io
    texts_of = {int(i): texts for i, texts in case.meta["img2txt"].items()}
    asked = RetrievalEvaluation(
        [], "test", TOKENIZER, image_size=128, max_words=30, max_tokens=12, candidates=K
    )
    n, n_texts = len(io["eval_image"]), len(io["eval_text_ids"])
    features: list[Prediction] = []
    for start in range(0, n, pictures_a_batch):
        pictures = range(start, min(start + pictures_a_batch, n))
        rows = [text for i in pictures for text in texts_of[i]]
        owner = {text: i for i in pictures for text in texts_of[i]}
        texts = packed(io["eval_text_ids"][rows], io["eval_text_atts"][rows])
        batch = CollectionBatch(
            pictures_ICHW=io["eval_image"][start : start + pictures_a_batch],
            texts=texts,
            picture_ids=tuple(f"picture:{i}" for i in pictures),
            items=tuple(
                TextItem(f"text:{t}", f"picture:{owner[t]}", "", tokens_of(io, t)) for t in rows
            ),
        )
        features += asked.predict(case.model, batch)
    pictures_IE = torch.tensor([p["feature"].tolist() for p in features if p["text"] is None])
    texts_TE = torch.tensor([p["feature"].tolist() for p in features if p["text"] is not None])
    predictions = features
    while (batches := asked.next_pass(predictions)) is not None:
        predictions = [p for batch in batches for p in asked.predict(case.model, batch)]
    sims = torch.full((n, n_texts), float("nan"))
    scores_i2t = torch.full((n, n_texts), -100.0)
    scores_t2i = torch.full((n_texts, n), -100.0)
    for prediction in predictions:
        kind, number = prediction["id"].split(":")
        into = scores_i2t if kind == "picture" else scores_t2i
        for name, score in zip(prediction["ranking"], prediction["scores"], strict=True):
            if score is not None:
                into[int(number), int(name.split(":")[1])] = score
        if kind == "picture":
            for name, value in zip(
                prediction["by_similarity"], prediction["similarities"], strict=True
            ):
                sims[int(number), int(name.split(":")[1])] = value
    case.meta["scores"] = asked.score(predictions)
    return {
        "eval_image_feat": Reproduced(pictures_IE),
        "eval_text_feat": Reproduced(texts_TE),
        "sims": Reproduced(sims),
        "score_i2t_k3": Reproduced(scores_i2t),
        "score_t2i_k3": Reproduced(scores_t2i),
    }


def tokens_of(io: dict[str, Tensor], text: int) -> tuple[int, ...]:
    length = int(io["eval_text_atts"][text].sum())
    return tuple(io["eval_text_ids"][text, :length].tolist())
