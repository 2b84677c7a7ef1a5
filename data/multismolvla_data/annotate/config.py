"""Options of ``multismolvla-annotate`` and what follows from them alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multismolvla.modalities import MINI_LABELS, Modality, ViewMap, validate_view_map
from multismolvla.pretrained import IMAGEBIND
from multismolvla_data.formats.metadata import JsonObject

# Spelled out, because `--help` shall not wait for torch; a test holds them to their places.
OFFICIAL_LABELS, NUM_OFFICIAL_LABELS = "coco_panoptic", 134
TOKENIZER_FAMILIES = ("patch", "official")
RELATIVE_RANGE_M = (0.3, 3.0)

DERIVABLE: tuple[str, ...] = (Modality.DEPTH.value, Modality.SEG.value, Modality.THERMAL.value)
_CHOICES = {
    "tokenizers": TOKENIZER_FAMILIES,
    "depth_output": ("auto", "relative", "metric"),
    "dtype": ("auto", "float32", "bfloat16"),
    "seg_unknown": ("error", "void"),
}
#: Options of this machine and this process: they decide nothing about the content.
_MACHINE = {
    "output", "dry_run", "device", "num_workers", "rank", "world_size", "wait_minutes",
    "verify_frames", "max_mismatch",
    "health",  # where it is another, an episode that could be finished is the same
}  # fmt: skip
#: Files and folders, which are known by their content instead.
_PLACES = {
    "dataset", "joined_from", "depth_model", "seg_model", "thermal_model", "tokenizer_sources", "imagebind",
    "bridge_map", "encoder",
}  # fmt: skip


@dataclass
class TokenizerOptions:
    """Options that decide the ids, as in the policy config: ids made with others are refused by it."""

    # Family of the tokenizers: "official" (4M's own networks) or "patch" (without weights, the mini suite's).
    tokenizers: str = "official"
    # Other places of the official tokenizers: name -> hub id or folder.
    tokenizer_sources: dict[str, str] = field(default_factory=dict)
    # Modality -> encoder domain, several joined by "+".
    domains: dict[str, str] = field(
        default_factory=lambda: {
            "depth": "tok_depth@224",
            "seg": "tok_semseg@224",
            "thermal": "tok_imagebind@224+tok_imagebind_global",
        }
    )
    # From a thermal picture to ids: "vision" (ImageBind's vision branch) or "bridge" (its thermal branch).
    thermal_route: str = "vision"
    # ImageBind-Huge: hub id, folder or .pth file.
    imagebind: str = IMAGEBIND
    # Rows of ImageBind that are tokenized: of its last block ("trunk"), or after the next LayerNorm ("norm").
    imagebind_rows: str = "trunk"
    # File with the learned map of the route "bridge".
    bridge_map: str | None = None
    # Label table of recorded segmentation pictures; default: the official ids.
    seg_labels: str = OFFICIAL_LABELS
    # What an id outside that table means: "error", or "void" = nothing, because the table does not know it.
    seg_unknown: str = "error"
    # Height and width in pixels of the pictures that are tokenized.
    image_size: int = 224
    # How a picture becomes square: "crop" (its centre), "stretch", or "pad" (as SmolVLA does it).
    square: str = "crop"
    # View -> rotation of its pictures in half turns (1 = 180 degrees), for a camera that hangs upside down.
    half_turns: dict[str, int] = field(default_factory=dict)
    # Nearest and farthest usable depth in metres; everything outside is invalid.
    depth_range_m: tuple[float, float] = (0.011, 10.0)
    # What becomes of a recorded picture that shows nothing, because its ids would not tell: "strict" = an
    # error, "act" = ids that say it is absent.
    health: str = "strict"

    def __post_init__(self) -> None:
        if self.health not in ("strict", "act"):
            raise ValueError(f"--health={self.health!r} is unknown. Expected strict or act.")


@dataclass
class AnnotateConfig(TokenizerOptions):
    """Options of ``multismolvla-annotate``."""

    # Folder of the LeRobotDataset v3 to annotate, or its hub id.
    dataset: str = ""
    # Folders that --dataset was joined from, in that order: `lerobot-edit-dataset` merges drop what data sets
    # tell about themselves (suite, render quality, initial states), this brings it along.
    joined_from: list[Path] = field(default_factory=list)
    # Folder of the new data set. Must not exist, or be the result of this very command.
    output: Path = Path("outputs/annotated")
    # Name stored in the new data set; default: the source's, with "_annotated".
    repo_id: str | None = None
    # Which modalities the new data set shall have beside RGB.
    modalities: list[str] = field(default_factory=lambda: list(DERIVABLE))
    # {view: {modality: key}} as in the policy; default: every RGB camera, keys by the naming convention.
    views: ViewMap | None = None
    # Episodes to take; default: all.
    episodes: list[int] | None = None
    # Keep depth, segmentation and thermal pictures, recorded and derived ones; false = ids in their place:
    # far smaller, and training loads it faster, because LeRobot decodes all pictures of many rows per sample.
    keep_pictures: bool = True
    # Cache token ids; false = pictures only.
    tokens: bool = True
    # Print what would be done, downloaded and needed, and stop.
    dry_run: bool = False

    # Depth network: hub id or folder.
    depth_model: str = "depth-anything/Depth-Anything-V2-Small-hf"
    # What the depth network gives: "relative" or "metric"; "auto" reads it from the network's config.
    depth_output: str = "auto"
    # Nominal metres given to the nearest and farthest pixel of relative depth.
    relative_range_m: tuple[float, float] = RELATIVE_RANGE_M
    # Segmentation network: hub id or folder.
    seg_model: str = "facebook/mask2former-swin-base-coco-panoptic"
    # ThermalGen, which estimates temperature: hub id or folder.
    thermal_model: str = "xjh19972/ThermalGen-XL-2"
    # Integration steps of ThermalGen.
    thermal_steps: int = 4
    # Solver of ThermalGen.
    thermal_method: str = "euler"
    # Height and width in pixels at which ThermalGen runs.
    thermal_size: int = 256
    # Style label, see the table in the README of ThermalGen; default: none.
    thermal_label: int | None = None
    # Strength of the guidance towards the style label; 1 = none.
    thermal_cfg_scale: float = 1.0
    # Seed of ThermalGen's noise, which is the same for all pictures.
    seed: int = 0

    # Size of the label table; default: that of the official ids, or the mini suite's 8.
    num_labels: int | None = None
    # 4M encoder whose config declares domains that are not official ones (only its config.json is read).
    encoder: str | None = None

    # Sensors: view -> metres per stored unit, where a depth camera's unit is not a millimetre (D405: 0.0001).
    # The stream is then stored anew, in millimetres.
    depth_scale_m: dict[str, float] = field(default_factory=dict)

    # Where the networks run, e.g. "cpu" or "cuda"; "auto" takes a GPU where there is one.
    device: str = "auto"
    # Number format of the estimators: "float32", "bfloat16", or "auto" = bfloat16 on a GPU; tokenizers stay
    # float32.
    dtype: str = "auto"
    # Frames that the networks see at once.
    batch_size: int = 16
    # Threads that decode and encode pictures.
    num_workers: int = 4

    # Number of this process, from 0; default: as `accelerate launch --multi_gpu` says. Without accelerate,
    # give it together with --world_size.
    rank: int | None = None
    # Number of processes that share the work.
    world_size: int | None = None
    # Minutes that rank 0 waits without any new episode before it gives up.
    wait_minutes: float = 60.0

    # Frames that are decoded and tokenized again at the end, to compare their ids with the stored ones.
    verify_frames: int = 64
    # Share of differing ids, 0 to 1, above which that comparison fails.
    max_mismatch: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"--{name}={getattr(self, name)!r} is unknown. Expected one of {list(allowed)}."
                )
        if not self.modalities or not set(self.modalities) <= set(DERIVABLE):
            raise ValueError(f"--modalities={self.modalities}: expected some of {list(DERIVABLE)}.")
        if not self.keep_pictures and not self.tokens:
            raise ValueError(
                "--keep_pictures=false and --tokens=false leave nothing to add. Keep one of them."
            )
        if self.views is not None:
            validate_view_map(self.views)
        for name, low in (("batch_size", 1), ("num_workers", 1), ("thermal_steps", 1), ("image_size", 16)):
            if getattr(self, name) < low:
                raise ValueError(f"--{name}={getattr(self, name)}: expected at least {low}.")
        if (self.rank is None) != (self.world_size is None):
            raise ValueError("--rank and --world_size belong together: give both or none.")
        if self.rank is not None and not 0 <= self.rank < (self.world_size or 0):
            raise ValueError(f"--rank={self.rank}: expected 0 to {(self.world_size or 0) - 1}.")
        if not 0 <= self.max_mismatch <= 1:
            raise ValueError(f"--max_mismatch={self.max_mismatch}: expected a share in [0, 1].")
        near, far = self.relative_range_m
        if not self.depth_range_m[0] < near < far <= self.depth_range_m[1]:
            raise ValueError(
                f"--relative_range_m={self.relative_range_m}: expected near < far within "
                f"--depth_range_m={self.depth_range_m}."
            )

    @property
    def label_count(self) -> int:
        """Size of the segmentation pictures' label set."""
        if self.num_labels is not None:
            return self.num_labels
        if self.tokenizers == "patch":
            return len(MINI_LABELS)
        from multismolvla.tokenizers.labels import LabelTable

        return LabelTable.load(self.seg_labels).num_source_ids

    def content(self) -> JsonObject:
        """The options that decide what is in the new data set; equal content may be resumed."""
        return {k: as_json(v) for k, v in asdict(self).items() if k not in _MACHINE | _PLACES}


def as_json(value: Any) -> object:
    """An option's value in JSON's own types, so that stored and current ones compare equal."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    return [as_json(v) for v in value] if isinstance(value, list | tuple) else value
