"""The typed recipe: every value that a run depends on, and nothing else. Imports no torch.

One YAML file is the whole truth of a run. Past :mod:`xvlm_core.config.resolve` no dictionary is
read any more: code takes these objects. Each field's description is what ``--dry-run``, error
messages and the documentation show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xvlm_core.data.records import REGION_KINDS, RegionKind
from xvlm_core.models.sizes import SIZES, ModelConfig

TaskName = Literal[
    "pretrain",
    "box_pretrain",
    "grounding",
    "weak_grounding",
    "retrieval",
    "nlvr2",
    "nlvr2_pretrain",
    "caption_pretrain",
    "captioning",
    "vqa",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    # Strict: "1e-4", which YAML 1.1 reads as a string, is an error that names the key. Trees are
    # validated as JSON (resolve.py), so that lists are tuples and 1 is a fine float.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InitConfig(_Section):
    """Where the first weights come from. Nothing is downloaded unless ``download`` is true."""

    vision: str | None = Field(None, description="ImageNet weights: a local file or a hub id")
    text: str | None = Field(None, description="BERT weights: a local folder or file, or a hub id")
    checkpoint: str | None = Field(
        None,
        description="a model folder or run; 'newest-pretrain' takes the newest pre-training run, "
        "'newest-TASK' that of another task",
    )
    download: bool = Field(False, description="allow hub ids to be fetched")


class ModelSection(_Section):
    """A named size and the values that differ from it."""

    size: Literal["base", "small", "tiny"] = Field("base", description="named size")
    image_size: int | None = Field(None, gt=0, description="input side in pixels (size's own)")
    window_size: int | None = Field(None, gt=0, description="Swin window (size's own)")
    drop_path: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="stochastic depth of the picture encoder, linear over its blocks (size's own)",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="further fields of ModelConfig, e.g. {text: {dropout: 0}}"
    )

    def shape(
        self, vocab_size: int | None = None, heads: tuple[str, ...] | None = None
    ) -> ModelConfig:
        """The full shape: size, then image and window size and drop path, then overrides."""
        config = SIZES[self.size]().model_dump()
        if self.image_size is not None:
            config["vision"]["image_size"] = self.image_size
        if self.window_size is not None:
            config["vision"]["window_size"] = self.window_size
        if self.drop_path is not None:
            config["vision"]["drop_path"] = self.drop_path
        if vocab_size is not None:
            config["text"]["vocab_size"] = vocab_size
        if heads is not None:
            config["heads"] = heads
        for key, value in self.overrides.items():
            if isinstance(value, dict) and isinstance(config.get(key), dict):
                config[key] = {**config[key], **value}
            else:
                config[key] = value
        return ModelConfig.model_validate(config)


class TextSection(_Section):
    """Tokens and masking (official.md 2.4, 2.7)."""

    tokenizer: str = Field(
        "bert-base-uncased",
        description="'bert-base-uncased' (packaged), 'world', or a tokenizer.json or vocab.txt",
    )
    max_words: int = Field(40, gt=0, description="words kept by the cleaning")
    max_tokens: int = Field(40, gt=1, description="tokens kept, CLS included")
    mask_prob: Fraction = Field(0.25, description="share of tokens to predict")
    max_masks: int = Field(8, gt=0, description="most tokens to predict in one text")
    skipgram_prb: Fraction = Field(0.2, description="chance of masking a run of 2..skipgram_size")
    skipgram_size: int = Field(3, ge=2)


class ImagesSection(_Section):
    """The stream of pictures with captions."""

    stores: tuple[str, ...] = Field(min_length=1, description="store folders under data.root")
    batch_size: int = Field(128, gt=0, description="pictures an update, over all ranks")


class RegionsSection(_Section):
    """The stream of pictures with regions."""

    stores: tuple[str, ...] = Field(min_length=1, description="store folders under data.root")
    batch_texts: int | None = Field(
        128,
        gt=0,
        description="at most this many texts an update, over all ranks; null: all that the "
        "pictures give",
    )
    max_images: int = Field(48, gt=0, description="pictures an update, over all ranks")
    max_regions: int = Field(5, gt=0, description="texts a picture (a caption takes one place)")
    kinds: tuple[RegionKind, ...] = Field(
        REGION_KINDS, min_length=1, description="kinds of regions that serve; others are left out"
    )
    caption: bool = Field(True, description="also use one caption of the picture, if it has any")
    min_perc_in_image: Fraction = Field(
        0.5, description="a box is kept if more than this share of it is inside the crop"
    )
    tokenized: bool = Field(
        False,
        description="texts are word pieces with spaces between, taken as they are (the released "
        "16M regions); false: texts are cleaned",
    )
    absent: int = Field(
        0, ge=0, description="texts a picture known NOT to be in it, for matching (0: none)"
    )
    iter_perc: Fraction = Field(0.5, description="mix extra: share of steps with a region update")


class PairsSection(_Section):
    """The stream of pairs of pictures with a statement about both."""

    stores: tuple[str, ...] = Field(min_length=1, description="store folders under data.root")
    batch_size: int = Field(80, gt=0, description="pairs an update, over all ranks")


class QuestionsSection(_Section):
    """The stream of pictures with questions and their answers."""

    stores: tuple[str, ...] = Field(min_length=1, description="store folders under data.root")
    batch_size: int = Field(
        192, gt=0, description="pictures an update, with their questions, over all ranks"
    )
    per_picture: int | None = Field(
        None,
        gt=0,
        description="at most so many questions of a picture in an update, the others come in "
        "further ones of the pass (released: 1); null: all, the picture is encoded once for them",
    )


class DataSection(_Section):
    """What is read, and how it is mixed."""

    root: str = Field(
        "data", description="folder of the prepared stores, or a URL such as s3://bucket/stores"
    )
    cache: str | None = Field(
        None,
        description="folder that keeps what was read from a URL; null: ~/.cache/xvlm/stores",
    )
    cache_gb: float = Field(20.0, gt=0, description="the most that it may take, 10^9 bytes")
    images: ImagesSection | None = None
    regions: RegionsSection | None = None
    pairs: PairsSection | None = None
    questions: QuestionsSection | None = None
    mix: Literal["extra", "joint"] = Field(
        "extra",
        description="extra: a region batch is a further update of its own (the released code); "
        "joint: one update on both together (the paper)",
    )
    validation: tuple[str, ...] = Field((), description="stores that select the best checkpoint")
    validation_split: str = Field("val", description="split of the validation stores")
    validation_limit: int | None = Field(None, gt=0, description="at most this many pictures")
    train_split: str = Field("train", description="split that is trained on")
    held_out: tuple[str, ...] = Field(
        (),
        description="stores (NAME, or NAME:val,test) whose validation and test pictures must not "
        "be trained on; those that are not prepared are named and passed over",
    )
    leaks: Literal["refuse", "allow"] = Field(
        "refuse", description="what to do if one of them is in the training data"
    )
    careful_flip: bool | None = Field(
        None,
        description="never mirror a picture whose text has the word left or right; null: as true, "
        "but false under compat=official in all but grounding with boxes and vqa, as released",
    )
    augment: bool = Field(True, description="random crop, flip and RandAugment in training")
    max_bad: Fraction = Field(
        0.01,
        description="share of the training samples that may be damaged (unreadable, or of another "
        "size than recorded) before the run ends: of the last 10,000, judged every 1,000 or every "
        "pass, and at least three records; 0: the first one ends it",
    )
    workers: int = Field(4, ge=0, description="loader processes a rank")
    size: int | None = Field(
        None, gt=0, description="samples that count as an epoch; null: those found on disk"
    )

    @model_validator(mode="after")
    def _something_to_read(self) -> DataSection:
        streams = (self.images, self.regions, self.pairs, self.questions)
        if all(stream is None for stream in streams):
            raise ValueError(
                "at least one of data.images, data.regions, data.pairs and data.questions is needed"
            )
        return self


class LossSection(_Section):
    """One loss: its weight, and the part of the run it takes part in."""

    weight: float = Field(1.0, ge=0)
    start: Fraction = Field(0.0, description="share of the run after which it joins")


class MatchingSection(LossSection):
    """Matching with hard negatives (Eq. 4)."""

    negatives: int = Field(
        1, ge=1, description="hard negatives of each text, and of each picture (the paper: 1)"
    )


class LossesSection(_Section):
    """The five losses of pre-training (Eq. 1-8), and those of tasks; a task takes its own."""

    contrastive: LossSection = LossSection()
    matching: MatchingSection = MatchingSection()
    masked_lm: LossSection = LossSection()
    box_l1: LossSection = LossSection()
    box_giou: LossSection = LossSection()
    statement: LossSection = LossSection()
    pair_assignment: LossSection = LossSection()
    language_modeling: LossSection = LossSection()
    self_critical: LossSection = LossSection()
    answer: LossSection = LossSection()


class OptimSection(_Section):
    """AdamW and its groups."""

    lr: float = Field(1.0e-4, gt=0)
    lr_mult: float = Field(2.0, gt=0, description="factor for parameters BERT and Swin lack")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.98)
    )
    eps: float = Field(1.0e-8, gt=0)
    clip_norm: float | None = Field(
        1.0, gt=0, description="global gradient norm; null: no clipping"
    )


class ScheduleSection(_Section):
    """Learning rate over the run."""

    kind: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="shape of the decay"
    )
    warmup: float = Field(0.1, ge=0, description="below 1: share of the run; else steps")
    warmup_from: Fraction = Field(0.0, description="share of lr that the warm-up starts from")
    floor: Fraction = Field(0.0, description="share of lr that the decay ends at")
    epochs: float | None = Field(None, gt=0, description="passes over data.size samples")
    max_steps: int | None = Field(None, gt=0, description="steps; wins over epochs")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="time budget: the schedule follows elapsed time (not bit-reproducible)",
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> ScheduleSection:
        if self.epochs is None and self.max_steps is None and self.max_seconds is None:
            raise ValueError("one of epochs, max_steps and max_seconds is needed")
        return self


class ScoringSection(_Section):
    """How answers are found and scored."""

    compat: Literal["none", "official"] | None = Field(
        None,
        description="official: as the released code scores, where that departs from sense; null: "
        "as the run was that the model is of (where compat is given, that goes for this, too)",
    )
    candidates: int = Field(
        256,
        gt=0,
        description="retrieval: texts a picture and pictures a text, nearest by similarity, that "
        "the cross encoder ranks anew; vqa: answers that are scored in two steps, best by their "
        "first word (k_test)",
    )
    answers: str | None = Field(
        None,
        description="vqa: file of the answers to choose from (a JSON list, or one a line); null: "
        "those of the model, else answers.json of the store, else those of its training questions",
    )
    scheme: Literal["auto", "exact", "two-step", "released", "open"] = Field(
        "auto",
        description="vqa: exact: every answer is scored; two-step: the candidates by their first "
        "word; released: the same, that word counted twice; open: written word by word, without a "
        "list; auto: exact up to 200 answers, else two-step (compat=official: released)",
    )
    max_words: int | None = Field(
        None,
        gt=0,
        description="vqa: words kept of a question that is asked (released: 50); null: as of those "
        "that are learnt from",
    )
    beams: int = Field(
        3, gt=0, description="captioning: of the search for the best caption; 1: greedy"
    )
    max_length: int = Field(
        20, gt=1, description="captioning: the most tokens, with CLS, prompt and SEP"
    )
    min_length: int = Field(
        5, ge=0, description="captioning: a caption of fewer tokens, with CLS and prompt, goes on"
    )
    cam_layer: int | None = Field(
        None,
        ge=0,
        description="grounding without boxes: layer of the text stack whose cross-attention makes "
        "the heat map (released: 9 of 12); null: the fourth cross layer, or the last",
    )
    proposals: tuple[str, ...] = Field(
        (),
        description="grounding without boxes: stores of boxes to choose from, by picture; none: "
        "the records' own proposals, or the best box of the heat map",
    )


class SelfCriticalSection(_Section):
    """The second stage of captioning: captions are drawn, and rewarded (official.md 3.6)."""

    samples: int = Field(5, gt=0, description="captions drawn for a picture")
    baseline: Literal["greedy", "others"] = Field(
        "greedy",
        description="what a reward is compared with: that of the most probable caption, or the "
        "mean of the other captions drawn for the picture",
    )
    references: int | None = Field(
        5, gt=0, description="captions of a picture that one is compared with, drawn; null: all"
    )
    cider: float = Field(1.0, ge=0, description="weight of CIDEr-D in the reward")
    bleu: float = Field(0.0, ge=0, description="weight of BLEU-4 in the reward")

    @model_validator(mode="after")
    def _a_reward_and_a_baseline(self) -> SelfCriticalSection:
        if not self.cider and not self.bleu:
            raise ValueError("one of cider and bleu is above 0, or there is no reward")
        if self.baseline == "others" and self.samples < 2:
            raise ValueError("baseline=others needs samples=2 or more")
        return self


class CaptioningSection(_Section):
    """How captions are learnt."""

    prompt: str = Field("a picture of ", description="what every caption begins with, not learnt")
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="share of the other tokens in cross-entropy"
    )
    stage: Literal["cross_entropy", "self_critical"] = Field(
        "cross_entropy",
        description="self_critical: the second stage, from a run of the first; it takes the values "
        "of second_stage",
    )
    self_critical: SelfCriticalSection = SelfCriticalSection()


class TrainSection(_Section):
    """The loop: precision, checkpoints, logging."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU, fp32 on the CPU; fp16 needs a GPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto")
    engine: Literal["torch", "deepspeed"] = Field(
        "torch", description="torch: one process, or data parallel (DDP); deepspeed: ZeRO"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="deepspeed: what the ranks share out; 1 optimizer state, 2 and gradients, 3 "
        "and weights",
    )
    offload: bool = Field(False, description="deepspeed: optimizer state in the host's memory")
    loss_scale: float | None = Field(
        None, gt=0, description="fp16: a fixed loss scale; null: it adapts, from 65,536 down"
    )
    micro_batches: int | None = Field(
        None,
        gt=0,
        description="parts that a batch is computed in, over all ranks; hard negatives are drawn "
        "within a part. null: one a rank. More than ranks: a rank computes several in turn",
    )
    activation_checkpointing: bool = Field(
        False, description="keep no activations inside encoder layers: less memory, a third slower"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, which is then what is validated "
        "and saved as the model; null: none",
    )
    threads: int | None = Field(
        None, gt=0, description="torch threads on the CPU; null: one a core (torch's own choice)"
    )
    checkpoint_every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep_last: int = Field(2, gt=0, description="newest checkpoints kept, besides the best")
    evaluate_every: int | None = Field(
        None, gt=0, description="steps between validations; null: at the end only"
    )
    log_every: int = Field(10, gt=0, description="steps between lines of metrics.jsonl")
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="where the lines of metrics.jsonl go besides"
    )
    upload: str | None = Field(
        None, description="URL such as s3://bucket/runs that finished checkpoints are copied to"
    )
    stall_seconds: float = Field(
        1800.0,
        gt=0,
        description="a run without progress for so long prints what each process does, and ends",
    )


class Recipe(_Section):
    """A whole run."""

    task: TaskName = Field(description="what is learnt")
    about: str = Field("", description="one line for `xvlm ls recipes`")
    compat: Literal["none", "official"] = Field(
        "none", description="official: reproduce the released code where it departs from sense"
    )
    seed: int = Field(42, ge=0, le=2**63 - 1)  # what torch's generators take
    official_ranks: int = Field(
        1, gt=0, description="ranks of the official run (reported; compat scales contrastive by it)"
    )
    model: ModelSection = ModelSection()
    init: InitConfig = InitConfig()
    data: DataSection
    text: TextSection = TextSection()
    losses: LossesSection = LossesSection()
    captioning: CaptioningSection = CaptioningSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection
    scoring: ScoringSection = ScoringSection()
    train: TrainSection = TrainSection()
    second_stage: dict[str, Any] = Field(
        default_factory=dict,
        description="values that the second stage of captioning has instead, as in a recipe "
        "(captioning.stage=self_critical)",
    )
