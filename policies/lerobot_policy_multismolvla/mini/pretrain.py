"""Stage 0 of the presets that start from nothing: tiny "foundation models" out of the recorded frames.

With official weights this stage does not exist. Offline there are none, and a tower trained from scratch
through the action loss alone learns to localise slowly (0 of 20 successes in ten minutes). So both towers get
what stands in for their web-scale pre-training, on the same frames and for the same number of steps, so that
the comparison stays fair:

* the tiny **4M encoder** learns 4M's own task in small: random subsets of modalities and of tokens are
  visible, the whole scene (labels, depth, temperature, colour) is predicted for every cell;
* the tiny **SigLIP** learns to predict the same targets from RGB.

Writes, each in the format of its official counterpart: ``vlm/`` (SmolVLM folder), ``fourm/`` (4M-21 folder)
and ``smolvla_init/`` (a SmolVLA checkpoint whose language model and expert are untrained).
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lerobot_policy_multismolvla.mini.cells import CellHeads, cell_targets, class_weight
from multismolvla.dropout import sample_presence
from multismolvla.fourm import FourMConfig, FourMEncoder
from multismolvla.fusion import GatedFusion
from multismolvla.modalities import DEPTH_VALID, MODALITIES, Modality, picture_key
from multismolvla.system.command import AGAIN, entry_point, parse_options, show_progress
from multismolvla.tokenizers import (
    PatchDepthTokenizer,
    ThermalGridTokenizer,
    WeightFreeTokenizer,
    seg_tokenizer,
    structured_token_embedding,
)
from multismolvla.tower import MultimodalTower

if TYPE_CHECKING:
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

logger = logging.getLogger(__name__)

DONE = "pretrain.json"
#: Patches of a picture in a row, whatever its size.
GRID = 8
#: One row per logged step: its number, and losses and measures by name.
History = list[dict[str, float]]


@dataclass
class PretrainConfig:
    """Options of ``python -m lerobot_policy_multismolvla.mini.pretrain``."""

    dataset: Path = Path("outputs/demo/dataset")  # LeRobotDataset with pictures of all four modalities
    output: Path = Path("outputs/demo/pretrained")
    steps: int = 500
    batch_size: int = 24  # frames; each has two views
    lr: float = 1e-3
    max_frames: int = 4000  # frames held in memory (18 bytes per pixel: 72 KB each at 64 pixels)
    image_size: int = 64  # side of the data set's pictures
    # Segmentation tokens in a row, 8 or a multiple: of each quadrant of a token's cell only the most frequent
    # label is told, so what is much smaller than a quadrant is not seen.
    seg_grid: int = GRID
    words: bool = False  # one token for each word of the instructions, instead of one for each byte
    seed: int = 0
    dim: int = 96  # width of the tiny 4M encoder
    depth: int = 3
    heads: int = 4
    text_width: int = 96
    text_layers: int = 4
    vision_width: int = 96
    vision_layers: int = 3
    chunk_size: int = 16
    n_action_steps: int = 8
    log_every: int = 50
    cameras: list[str] = field(default_factory=lambda: ["image", "image2"])

    def __post_init__(self) -> None:
        if self.seg_grid < 1 or self.seg_grid % GRID or self.image_size % self.seg_grid:
            raise ValueError(
                f"--seg_grid={self.seg_grid}: expected a multiple of {GRID} that divides the pictures' side "
                f"--image_size={self.image_size}."
            )

    @property
    def label_parts(self) -> int:
        """Parts of a cell whose labels are told: the quadrants of its segmentation tokens."""
        return (2 * self.seg_grid // GRID) ** 2


@dataclass
class Frames:
    """Canonical pictures of R = frames x views in memory."""

    rgb: Tensor  # uint8 (R, 3, S, S)
    depth: Tensor  # float32 (R, 1, S, S) metres, 0 = invalid
    seg: Tensor  # uint8 (R, 1, S, S)
    thermal: Tensor  # uint8 (R, 1, S, S)
    state: Tensor  # float32 (R / V, 8), raw
    task: list[str]  # instruction per frame
    labels: list[str]  # names of the ids in ``seg``

    def __len__(self) -> int:
        """Number of frames, each with V consecutive rows in the pictures."""
        return len(self.task)

    def rows(self, frames: Tensor) -> Tensor:
        """Picture rows of the given frames, views adjacent."""
        views = len(self.rgb) // len(self)
        return (frames[:, None] * views + torch.arange(views)).flatten()

    def canonical(self, frames: Tensor) -> dict[str, Tensor]:
        """Pictures of the given frames as the tower takes those of one view."""
        rows = self.rows(frames)
        depth = self.depth[rows]
        return {
            "rgb": self.rgb[rows].float() / 255,
            "depth": depth,
            DEPTH_VALID: depth > 0.011,
            "seg": self.seg[rows].long(),
            "thermal": self.thermal[rows].float() / 255,
        }


def load_frames(cfg: PretrainConfig) -> Frames:
    """Decode up to ``max_frames`` frames, spread evenly over the dataset.

    Raises:
        ValueError: the dataset lacks a modality or has another picture size.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from tqdm import tqdm

    data = LeRobotDataset(cfg.dataset.name, root=cfg.dataset, depth_output_unit="m", return_uint8=True)
    lacking = [k for c in cfg.cameras for m in MODALITIES if (k := picture_key(c, m)) not in data.features]
    if lacking:
        raise ValueError(
            f"{cfg.dataset} lacks {lacking}. The tiny towers are pre-trained on all four modalities: record "
            "with multismolvla-record."
        )
    labels = data.features[picture_key(cfg.cameras[0], Modality.SEG)].get("info", {}).get("labels")
    if not labels:
        raise ValueError(
            f"{cfg.dataset} does not say what its segmentation ids mean (info.labels in meta/info.json). "
            "Record with multismolvla-record."
        )
    count = min(cfg.max_frames, len(data))
    pictures: dict[str, list[Tensor]] = {m: [] for m in MODALITIES}
    states, tasks = [], []
    for row in tqdm(torch.linspace(0, len(data) - 1, count).long().tolist(), "decode frames", unit="frame"):
        item = data[row]
        states.append(item["observation.state"].float())
        tasks.append(item["task"])
        for camera in cfg.cameras:
            for modality, store in pictures.items():
                picture = item[picture_key(camera, modality)]
                if picture.shape[-2:] != (cfg.image_size, cfg.image_size):
                    raise ValueError(
                        f"{cfg.dataset}: a picture is {tuple(picture.shape)}, expected side "
                        f"{cfg.image_size}. Record pictures of that size, or give pre-training "
                        f"--image_size={picture.shape[-1]}; in a preset all stages name the size, so write "
                        "one that extends it."
                    )
                store.append(_compact(picture, modality))
    rgb, depth, seg, thermal = (torch.stack(pictures.pop(m)) for m in MODALITIES)
    return Frames(rgb, depth, seg, thermal, torch.stack(states), tasks, labels)


def _compact(picture: Tensor, modality: str) -> Tensor:
    """A picture as `Frames` holds it, with memory of its own: a view would keep all channels alive."""
    if modality == Modality.DEPTH:
        return picture[:1].float().clone()
    if picture.dtype != torch.uint8:
        picture = (picture * 255).round().to(torch.uint8)
    return picture if modality == Modality.RGB else picture[:1].clone()


def pretrain(cfg: PretrainConfig) -> History:
    """Run the stage; see the module's docstring."""
    from tqdm import trange

    generator = torch.Generator().manual_seed(cfg.seed)
    torch.manual_seed(cfg.seed)
    frames = load_frames(cfg)
    labels = len(frames.labels)
    tower, policy = _build(cfg, frames, generator)
    fourm_heads = CellHeads(cfg.dim, labels, generator, cfg.label_parts)
    siglip_heads = CellHeads(cfg.vision_width, labels, generator, cfg.label_parts)
    fusion = GatedFusion(cfg.dim, MODALITIES, GRID)
    language = LanguageHalf(cfg, policy, frames)
    trained = [tower.encoder, fusion, fourm_heads.net, siglip_heads.net]
    trained += [policy.model.vlm_with_expert.vlm.model, policy.model.state_proj, language.grounding]
    parameters = [p for module in trained for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)  # upstream freezes the last layer, which the action loss cannot reach
    optimizer = torch.optim.AdamW(parameters, cfg.lr, weight_decay=0.01)
    warmup = max(1, min(50, cfg.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * i / cfg.steps)) + 0.02)
    )
    weight = class_weight(frames.seg, labels)
    history: History = []
    bar = trange(cfg.steps, desc="pretrain towers", unit="step")
    for step in bar:
        chosen = torch.randint(len(frames), (cfg.batch_size,), generator=generator)
        views = frames.canonical(chosen)
        rgb, depth, seg, thermal = (views[m] for m in MODALITIES)
        target = cell_targets(rgb, depth, seg, thermal, GRID, cfg.label_parts)
        features = fused_features(tower, fusion, views, generator)
        loss_f, log_f = fourm_heads.loss(features, target, weight)
        siglip, loss_g, where_error = language.loss(chosen, rgb, seg)
        loss_s, log_s = siglip_heads.loss(siglip, target, weight)
        log_s["where_error"] = where_error
        optimizer.zero_grad()
        (loss_f + loss_s + loss_g).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % cfg.log_every == 0 or step == cfg.steps - 1:
            row = {"step": step, "fourm": loss_f.item(), "siglip": loss_s.item()}
            row |= {f"fourm_{k}": v for k, v in log_f.items()} | {f"siglip_{k}": v for k, v in log_s.items()}
            history.append(row)
            bar.set_postfix({k: f"{v:.2f}" for k, v in row.items() if k != "step"})
    _write(cfg, tower, policy, history)
    return history


class LanguageHalf:
    """Instruction, state and pictures -> grounding loss through SigLIP, connector and language model."""

    def __init__(self, cfg: PretrainConfig, policy: SmolVLAPolicy, frames: Frames):
        from transformers import AutoTokenizer

        from lerobot_policy_multismolvla.mini.grounding import Grounding, named_labels

        self.model = policy.model
        self.views = len(cfg.cameras)
        self.grounding = Grounding(cfg.text_width, self.views)
        tokenizer = AutoTokenizer.from_pretrained(cfg.output / "vlm")
        texts = sorted(set(frames.task))
        encoded = tokenizer(
            [t + "\n" for t in texts], padding=True, padding_side="right", return_tensors="pt"
        )
        self.task = torch.tensor([texts.index(t) for t in frames.task])
        self.tokens, self.mask = encoded["input_ids"], encoded["attention_mask"].bool()
        seen = torch.bincount(frames.seg.flatten()).nonzero().flatten().tolist()
        self.wanted = torch.tensor([named_labels(t, frames.labels, seen) for t in texts])
        std, mean = torch.std_mean(frames.state, dim=0)
        state = (frames.state - mean) / std.clamp_min(1e-6)
        self.state = F.pad(state, (0, policy.config.max_state_dim - state.shape[1]))

    def loss(self, chosen: Tensor, rgb: Tensor, seg: Tensor) -> tuple[Tensor, Tensor, float]:
        """SigLIP's features (R, N, D), the grounding loss, and the mean position error in picture sides."""
        from lerobot_policy_multismolvla.mini.grounding import centroids, prefix_state

        seen: list[Tensor] = []
        vision = self.model.vlm_with_expert.get_vlm_model().vision_model
        handle = vision.register_forward_hook(lambda _m, _i, out: seen.append(out.last_hidden_state))
        task = self.task[chosen]
        images = [2 * rgb[v :: self.views] - 1 for v in range(self.views)]
        try:
            hidden = prefix_state(self.model, images, self.tokens[task], self.mask[task], self.state[chosen])
        finally:
            handle.remove()
        where, visible = centroids(seg[:, 0].unflatten(0, (-1, self.views)), self.wanted[task])
        loss, error = self.grounding(hidden, where, visible)
        return torch.stack(seen, 1).flatten(0, 1), loss, error


def fused_features(
    tower: MultimodalTower, fusion: GatedFusion, views: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Encode a random subset of modalities and tokens, and fuse to one feature per cell (R, N, D)."""
    rows = len(views["rgb"])
    available = torch.ones(rows, 1, len(MODALITIES), dtype=torch.bool)
    presence = sample_presence(available, 0.5, generator, complete_share=0.25)
    inputs = tower.encoder_inputs([views], presence)
    # a quarter of the samples keeps every token; the others lose a random share of each modality's tokens
    share = 0.5 * torch.rand(rows, 1, 1, generator=generator)
    share[: rows // 4] = 0
    for domain, there in inputs.present.items():
        inputs.present[domain] = there & (torch.rand(there.shape, generator=generator) >= share)
    out = tower.encode(inputs)
    fused, _, _ = fusion(out.tokens, out.present)
    return fused.flatten(1, 2)


def _build(
    cfg: PretrainConfig, frames: Frames, generator: torch.Generator
) -> tuple[MultimodalTower, SmolVLAPolicy]:
    """The tiny 4M tower and an upstream SmolVLA policy around the tiny VLM folder."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    from lerobot_policy_multismolvla.mini.tiny_vlm import TinyVLMConfig, build_tiny_vlm

    tokenizers: dict[str, WeightFreeTokenizer] = {
        "depth": PatchDepthTokenizer(grid=GRID),
        "seg": seg_tokenizer(cfg.seg_grid, len(frames.labels)),
        "thermal": ThermalGridTokenizer(grid=4),
    }
    vocabulary = tokenizers["seg"].vocab_size
    sizes = FourMConfig.mini(cfg.dim, cfg.depth, cfg.heads, cfg.image_size, vocabulary, cfg.seg_grid)
    domains = dict(zip(MODALITIES, sizes.domains_in, strict=True))
    encoder = FourMEncoder(sizes, list(sizes.domains_in))
    encoder.init_weights(generator)
    with torch.no_grad():
        for modality, tokenizer in tokenizers.items():
            table = structured_token_embedding(tokenizer, cfg.dim, generator)
            rows = encoder.get_parameter(f"encoder_embeddings.{domains[modality]}.token_emb.weight")
            rows[: len(table)].copy_(table)
    tower = MultimodalTower(encoder, domains, tokenizers, cfg.image_size)
    build_tiny_vlm(
        cfg.output / "vlm",
        TinyVLMConfig(
            text_width=cfg.text_width,
            text_layers=cfg.text_layers,
            text_mlp=8 * cfg.text_width // 3,
            vision_width=cfg.vision_width,
            vision_layers=cfg.vision_layers,
            image_size=cfg.image_size,
            patch_size=cfg.image_size // GRID,
        ),
        sorted(set(frames.task)) if cfg.words else (),
    )
    return tower, SmolVLAPolicy(_smolvla_config(cfg))


def _smolvla_config(cfg: PretrainConfig) -> Any:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    picture = PolicyFeature(FeatureType.VISUAL, (3, cfg.image_size, cfg.image_size))
    cams = {picture_key(camera, Modality.RGB): picture for camera in cfg.cameras}
    return SmolVLAConfig(
        vlm_model_name=str(cfg.output / "vlm"),
        load_vlm_weights=False,
        chunk_size=cfg.chunk_size,
        n_action_steps=cfg.n_action_steps,
        resize_imgs_with_padding=(cfg.image_size, cfg.image_size),
        num_vlm_layers=cfg.text_layers,
        freeze_vision_encoder=False,
        train_expert_only=False,
        input_features=cams | {"observation.state": PolicyFeature(FeatureType.STATE, (8,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        push_to_hub=False,
        device="cpu",
    )


def _write(cfg: PretrainConfig, tower: MultimodalTower, policy: SmolVLAPolicy, history: History) -> None:
    """Write the three folders; the marker file comes last, so that a killed run is seen as unfinished."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    for name in ("fourm", "smolvla_init"):
        shutil.rmtree(cfg.output / name, ignore_errors=True)
    tower.encoder.save_pretrained(cfg.output / "fourm")
    stats = LeRobotDatasetMetadata(cfg.dataset.name, root=cfg.dataset).stats
    policy.save_pretrained(cfg.output / "smolvla_init")
    for pipeline in make_smolvla_pre_post_processors(policy.config, stats):
        pipeline.save_pretrained(cfg.output / "smolvla_init")
    report = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(cfg).items()},
        "history": history,
    }
    (cfg.output / DONE).write_text(json.dumps(report, indent=1))


@entry_point("error", interrupted=AGAIN)
def main() -> int:
    """Command line entry; the exit code is 0, or 1 after an error named on stderr."""
    show_progress("lerobot_policy_multismolvla")
    cfg = parse_options(PretrainConfig)
    cfg.output.mkdir(parents=True, exist_ok=True)
    (cfg.output / DONE).unlink(missing_ok=True)
    pretrain(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(main())
