"""The recipe: every field, its default and what it may be.

Whatever has a name is a mapping, in the order written, so that every value has a path
(`stages.fixed.train.steps`) for overrides and for errors. `field(metadata=...)` carries what a
reader of YAML must check: `choices` (a tuple of names), `least` (the smallest legal number),
`above` (a number that the value must exceed), `most` (the largest legal number).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill.recipe.learning import (
    OBJECTIVES,
    AdapterConfig,
    BalanceConfig,
    LossConfig,
    MaskedConfig,
    PartitionConfig,
)

NORMALISERS = ("standardise", "none", "l2", "ema", "phi_s")
VIEW_POLICIES = ("eupe", "crop", "flip", "centre")
TRACKERS = ("tensorboard", "wandb")
CACHE_FORMATS = ("exact", "float16", "bfloat16", "int8")
SUBSETS = ("all", "leave_one_out")
TASKS = (
    "knn",
    "attributes",
    "segmentation",
    "depth",
    "image_retrieval",
    "text_retrieval",
    "masks",
    "affinity",
)


@dataclass
class SourceConfig:
    """Where training images come from: `folder:PATH`, `scenes:count=8192,size=96,seed=0`,
    `webdataset:/data/{00000..00123}.tar` (or URLs, or `pipe:COMMAND`), or
    `hf:NAME,split=train,column=image`.

    `share` of all images; `homogeneous`: as so many batches that are wholly from this source, the
    rest of them mixed. `teachers`: those that see its images, and no others do (default: all of a
    stage). `allow_pipe`: whether a `webdataset:pipe:` source may run its commands.
    """

    source: str
    share: float = field(default=1.0, metadata={"above": 0.0})
    homogeneous: bool = False
    teachers: list[str] = field(default_factory=list)
    allow_pipe: bool = False


@dataclass
class ViewsConfig:
    """How a view is cut from an image (`eupe`: random resized crop, flip, colour jitter, blur,
    solarisation; `crop`: crop and flip alone; `flip` and `centre`: the centre square). `scale` is
    the crop's share of the image's area; `canvas` the side of a view in pixels (default: the
    stage's largest size). `per_sample`: how many views a sample has, which come round again, so
    that a cache of teachers' features can hit (default: a new one an epoch).
    """

    policy: str = field(default="eupe", metadata={"choices": VIEW_POLICIES})
    scale: list[float] = field(default_factory=lambda: [0.25, 1.0])
    canvas: int | None = field(default=None, metadata={"least": 8})
    per_sample: int | None = field(default=None, metadata={"least": 1})


@dataclass
class DataConfig:
    """Training images and their views; `workers` are loader processes on each rank.

    An image of more than `max_pixels` (width times height) counts as one that cannot be decoded;
    more than a share `max_bad` of such images ends the run. `shard_cache_gb`: room for fetched
    shards of streamed sources, in 10^9 bytes.
    """

    train: dict[str, SourceConfig]
    views: ViewsConfig = field(default_factory=ViewsConfig)
    view_seed: int = field(default=0, metadata={"least": 0})
    workers: int = field(default=1, metadata={"least": 0})
    max_pixels: int = field(default=100_000_000, metadata={"least": 1})
    max_bad: float = field(default=0.01, metadata={"least": 0.0, "most": 1.0})
    shard_cache_gb: float = field(default=100.0, metadata={"above": 0.0})


@dataclass
class TeacherConfig:
    """A frozen teacher: `weights` of a `family`, or a preset (`weights: dinov2-b`), which brings
    its own family and stands as both in the resolved recipe. `sizes`: the sizes it may be shown
    (default: its own).

    What a teacher may cost: `tokens`, `layer` (dense tokens after this block instead of the last),
    `batch_share` (it sees that share of each batch, and the loss counts only those images),
    `micro_batch` (images of one forward pass), `device` (one of its own, "cuda:1" or "cpu"; the
    default is the students'), `shard` (its blocks split over the ranks). `mean` and `std`: pixel
    statistics for a checkpoint that brings none. `trust_remote_code` and `allow_pickle`: what a
    checkpoint may bring along.

    `normaliser` makes targets of its features; `momentum`: of `ema`, the share of a batch's own
    statistics that enters the running ones.
    """

    family: str | None = field(default=None, kw_only=True)
    weights: str
    sizes: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=lambda: ["summary", "dense"])
    dtype: str = field(
        default="auto", metadata={"choices": ("auto", "float32", "bfloat16", "float16")}
    )
    layer: int | None = field(default=None, metadata={"least": 1})
    batch_share: float = field(default=1.0, metadata={"above": 0.0, "most": 1.0})
    micro_batch: int | None = field(default=None, metadata={"least": 1})
    device: str | None = None
    shard: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    normaliser: str = field(default="standardise", metadata={"choices": NORMALISERS})
    momentum: float = field(default=0.01, metadata={"above": 0.0, "most": 1.0})
    weight: float = field(default=1.0, metadata={"above": 0.0})


@dataclass
class StudentConfig:
    """A student: a new one (`arch`, a timm name; `pretrained` for timm's weights) or one that goes
    on from elsewhere (`init`: an earlier `stage/student`, or an exported folder).

    `model` overrides arguments of the architecture (embed_dim, depth, ...). `seeds` trains it once
    for each (default: the recipe's seed); a seed governs initial weights and draws of sizes.
    """

    teachers: list[str]
    arch: str | None = None
    init: str | None = None
    pretrained: bool = False
    proxy: bool = False
    model: dict[str, Any] = field(default_factory=dict)
    adapter: AdapterConfig | None = None
    seeds: list[int] = field(default_factory=list)


@dataclass
class TrainConfig:
    """Optimisation of every student of a stage. `batch_size` is over all ranks.

    `micro_batch`: images of a rank that go through at once, gradients added up (default: all of its
    part). `checkpointing`: keep fewer activations and compute them again on the way back. `shard`:
    weights, gradients, moments and moving average split over the ranks, instead of whole on each;
    a run may go on with it or without. After
    `max_nonfinite` steps in a row whose loss or gradient is not finite, a student is stopped.
    `students_at_once`: how many go through the stage together (default: all); the next ones ask the
    teachers again, or their cache.
    """

    steps: int = field(default=1000, metadata={"least": 1})
    batch_size: int = field(default=64, metadata={"least": 1})
    lr: float = field(default=2.0e-4, metadata={"above": 0.0})
    min_lr: float = field(default=0.0, metadata={"least": 0.0})
    warmup: int = field(default=0, metadata={"least": 0})
    weight_decay: float = field(default=1.0e-4, metadata={"least": 0.0})
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip: float | None = field(default=1.0, metadata={"above": 0.0})
    ema: float | None = field(default=None, metadata={"above": 0.0, "most": 1.0})
    precision: str = field(default="auto", metadata={"choices": ("auto", "fp32", "bf16")})
    micro_batch: int | None = field(default=None, metadata={"least": 1})
    checkpointing: bool = False
    shard: bool = False
    max_nonfinite: int = field(default=10, metadata={"least": 1})
    students_at_once: int | None = field(default=None, metadata={"least": 1})
    log_every: int = field(default=20, metadata={"least": 1})
    save_every: int = field(default=1000, metadata={"least": 1})


@dataclass
class StageConfig:
    """One pass of frozen teachers that trains some students.

    `image_sizes` are the students'; each step draws one. A teacher draws independently: from its
    own `sizes` where it has some, else from `teacher_sizes`, else an earlier stage's student from
    `image_sizes`, and any other teacher is shown its native size.

    `normaliser` makes targets of the features of all its teachers, in place of their own (default:
    their own, and of an earlier stage's student `standardise`). `partitions` of each batch may have
    other sizes, and fewer teachers (AM-RADIO). `objective`: students `match` their teachers'
    features of the whole image, or learn `masked`.
    """

    students: dict[str, StudentConfig]
    image_sizes: list[int]
    teacher_sizes: list[int] = field(default_factory=list)
    normaliser: str | None = field(default=None, metadata={"choices": NORMALISERS})
    partitions: dict[str, PartitionConfig] = field(default_factory=dict)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: str = field(default="match", metadata={"choices": OBJECTIVES})
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    calibration_batches: int = field(default=500, metadata={"least": 1})

    def all_sizes(self) -> list[int]:
        """Every size in pixels at which students are trained, those of partitions too."""
        own = [size for part in self.partitions.values() for size in part.image_sizes]
        return list(dict.fromkeys([*self.image_sizes, *own]))


@dataclass
class ValidateConfig:
    """The probes that are run on every teacher and student when the stages are done.

    `stages`: whose students are probed (default: all); `sizes`: the image sizes (default: the
    first size of the last stage); `train` and `test`: scenes that probes learn from and are
    scored on.

    `every`: so many steps apart, and at the end of each stage, the probes `fast` are run on the
    students while they train (default: never), on `fast_scenes` scenes of each split, at the first
    of `sizes` (default: of the stage's own).
    """

    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    stages: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    train: int = field(default=1024, metadata={"least": 64})
    test: int = field(default=1024, metadata={"least": 64})
    seed: int = field(default=0, metadata={"least": 0})
    every: int | None = field(default=None, metadata={"least": 1})
    fast: list[str] = field(default_factory=lambda: ["knn", "affinity"])
    fast_scenes: int = field(default=256, metadata={"least": 64})


@dataclass
class ExportConfig:
    """What the exported students' cards say of them; `licence` as the Hub spells it."""

    licence: str = "other"
    author: str = ""


@dataclass
class TrackingConfig:
    """Where the values of log.jsonl go as well while a stage trains (default: nowhere).

    `to`: `tensorboard` (files in the run's folder), `wandb` (Weights & Biases, under the account
    that this machine is logged in with); `project`: its project, or TensorBoard's name of the run
    (default: the recipe's name).
    """

    to: list[str] = field(default_factory=list)
    project: str | None = None


@dataclass
class CacheConfig:
    """Teachers' features kept on disk (default: they are not): `folder` (default: `features` in
    this machine's cache folder), `format` of new ones (`exact`: the teacher's own dtype) and room
    for all of them, `limit_gb` in 10^9 bytes."""

    folder: str | None = None
    format: str = field(default="exact", metadata={"choices": CACHE_FORMATS})
    limit_gb: float = field(default=100.0, metadata={"above": 0.0})


@dataclass
class CompareConfig:
    """Which subsets of the teachers are compared, and by which path.

    `teachers`: those that vary (default: all of the recipe; the others stay in every subset).
    `subsets`: `all` that name at least one of them, `leave_one_out` (all of them, then all but
    one), or a list of lists of names; `sizes` keeps the subsets of so many teachers. `through`:
    the stages to go through (default: all); where a stage is left out, a reference to its student
    stands for what that student learns from, or starts from. `seeds`: each subset is trained once
    for each. `tasks`: those of `validate.tasks` that the answer counts (default: all).
    """

    teachers: list[str] = field(default_factory=list)
    subsets: Any = "all"
    sizes: list[int] = field(default_factory=list)
    through: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tasks: list[str] = field(default_factory=list)


@dataclass
class Recipe:
    """A whole experiment: data, teachers, stages, validation, export, tracking, a cache of
    teachers' features; and what `distill compare` makes of it."""

    name: str
    data: DataConfig
    teachers: dict[str, TeacherConfig]
    stages: dict[str, StageConfig]
    seed: int = field(default=0, metadata={"least": 0})
    validate: ValidateConfig | None = field(default_factory=ValidateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cache: CacheConfig | None = None
    compare: CompareConfig | None = None
