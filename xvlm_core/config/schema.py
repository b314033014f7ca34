"""The typed recipe: every value that a run depends on, and nothing else. Imports no torch.

One YAML file is the whole truth of a run. Past :mod:`xvlm_core.config.resolve` no dictionary is
read any more: code takes these objects. Each field's description is what ``--dry-run``, error
messages and the documentation show.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xvlm_core.config.data_sections import DataSection, TextSection
from xvlm_core.config.section import Fraction, Section
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


class InitConfig(Section):
    """Where the first weights come from. Nothing is downloaded unless ``download`` is true."""

    vision: str | None = Field(None, description="ImageNet weights: a local file or a hub id")
    text: str | None = Field(None, description="BERT weights: a local folder or file, or a hub id")
    checkpoint: str | None = Field(
        None,
        description="a model folder or run; 'newest-pretrain' takes the newest pre-training run, "
        "'newest-TASK' that of another task",
    )
    download: bool = Field(False, description="allow hub ids to be fetched")


class ModelSection(Section):
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


class LossSection(Section):
    """One loss: its weight, and the part of the run it takes part in."""

    weight: float = Field(1.0, ge=0)
    start: Fraction = Field(0.0, description="share of the run after which it joins")


class MatchingSection(LossSection):
    """Matching with hard negatives (Eq. 4)."""

    negatives: int = Field(
        1, ge=1, description="hard negatives of each text, and of each picture (the paper: 1)"
    )


class LossesSection(Section):
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


class OptimSection(Section):
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


class ScheduleSection(Section):
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


class ScoringSection(Section):
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


class SelfCriticalSection(Section):
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


class CaptioningSection(Section):
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

    @field_validator("prompt")
    @classmethod
    def _ends_before_a_word(cls, prompt: str) -> str:
        if prompt and prompt[-1].isalnum():
            raise ValueError(
                f"the first word of a caption would be glued to it: write {prompt + ' '!r}"
            )
        return prompt


class TrainSection(Section):
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


class Recipe(Section):
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
