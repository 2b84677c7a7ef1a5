r"""``multismolvla-export``: a slim encoder, or a policy with merged adapters and a model card.

Example:
    $ multismolvla-export --slim-encoder --encoder=EPFL-VILAB/4M-21_XL \
        --modalities='[rgb@224, tok_depth@224]' --output=outputs/encoder_xl
    $ multismolvla-export --checkpoint=outputs/libero_b/train/robust/checkpoints/last/pretrained_model \
        --output=outputs/policy
    $ multismolvla-export --checkpoint=outputs/policy --dataset=outputs/so101/dataset --output=outputs/start \
        --views='{front: {rgb: observation.images.front}}'     # for fine-tuning with other cameras
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from multismolvla.modalities import ViewMap, validate_view_map
from multismolvla.system.command import entry_point, parse_options


@dataclass
class ExportConfig:
    """Options of ``multismolvla-export``."""

    output: Path = Path("outputs/export")  # new folder
    # folder of a policy (…/checkpoints/last/pretrained_model); its adapters are merged
    checkpoint: Path | None = None
    base: Path | None = None  # folder of the checkpoint that the adapters stand on, if it was moved
    # {view: {modality: key}} and the data set to fine-tune on: a start for `lerobot-train --policy.path`
    views: ViewMap | None = None
    dataset: Path | None = None
    slim_encoder: bool = False  # write a 4M encoder with the few tensors needed, not a policy
    encoder: str | None = None  # 4M folder or hub id; default: that of --checkpoint
    revision: str | None = None  # commit, branch or tag of --encoder on the hub
    # encoder domains to keep, e.g. [rgb@224, tok_depth@224]; default: those of --checkpoint
    modalities: list[str] = field(default_factory=list)
    # absolute or delta: of the data of --dataset, or of a checkpoint from before `policy.action_kind` was;
    # default: as the checkpoint says
    action_kind: str | None = None
    bf16: bool = False  # a policy's weights in bfloat16, half the file; it acts in it (policy.acting_dtype)
    push: str | None = None  # upload the export to this hub repository, owner/name
    private: bool = True  # visibility of a repository that is made by --push

    def check(self) -> None:
        """Refuse what cannot be done, before anything is read.

        Raises:
            ValueError: options that are missing or contradict each other.
        """
        if self.slim_encoder and self.checkpoint is None and not (self.encoder and self.modalities):
            raise ValueError(
                "--slim-encoder needs --encoder (folder or hub id) and --modalities, or a --checkpoint."
            )
        if not self.slim_encoder and self.checkpoint is None:
            raise ValueError("Nothing to export: name a policy with --checkpoint, or give --slim-encoder.")
        if not self.slim_encoder and (self.encoder or self.modalities or self.revision):
            raise ValueError("--encoder, --modalities and --revision belong to --slim-encoder.")
        if self.slim_encoder and self.base is not None:
            raise ValueError("--base belongs to the export of a policy, not to --slim-encoder.")
        if (self.views is None) != (self.dataset is None):
            raise ValueError("--views and --dataset belong together: a start for fine-tuning needs both.")
        if self.views is not None:
            validate_view_map(self.views)
            if self.slim_encoder or self.push:
                raise ValueError(
                    "A start for fine-tuning (--views) is no slim encoder, and not to be pushed."
                )
        if self.action_kind is not None and self.slim_encoder:
            raise ValueError("--action_kind belongs to the export of a policy.")
        if self.bf16 and (self.slim_encoder or self.views is not None):
            raise ValueError("--bf16 belongs to the export of a policy.")
        if self.push is not None and self.push.count("/") != 1:
            raise ValueError(f"--push={self.push}: expected owner/name.")


def export(cfg: ExportConfig) -> str:
    """Do it. Returns what to tell the user."""
    cfg.check()
    from lerobot_policy_multismolvla import export as work  # seconds: LeRobot and PyTorch

    if cfg.slim_encoder:
        encoder, revision, modalities, expected = cfg.encoder, cfg.revision, cfg.modalities, None
        if cfg.checkpoint is not None:
            policy = work.read_policy_config(cfg.checkpoint)
            domains = work.encoder_domains(policy)
            modalities = modalities or domains
            # the policy's hash is that of its own domains
            expected = policy.encoder_hash if modalities == domains else None
            if encoder is None:
                encoder, revision = policy.encoder, revision or policy.encoder_revision
        assert encoder is not None
        made = work.slim_encoder(encoder, modalities, cfg.output, revision=revision, expected_hash=expected)
        said = f"Encoder with {', '.join(made.modalities)} in {cfg.output}. Licence: {made.licence}."
    elif cfg.views is not None:
        assert cfg.checkpoint is not None
        assert cfg.dataset is not None
        rows = work.export_for_finetuning(
            cfg.checkpoint,
            cfg.output,
            views=cfg.views,
            dataset=cfg.dataset,
            base=cfg.base,
            action_kind=cfg.action_kind,
        )
        lines = [("", "from the checkpoint", "new"), *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        said = "\n".join([*table, f"Start: lerobot-train --policy.path={cfg.output} ..."])
    else:
        assert cfg.checkpoint is not None
        added = work.export_policy(
            cfg.checkpoint, cfg.output, base=cfg.base, action_kind=cfg.action_kind, bf16=cfg.bf16
        )
        said = f"Policy in {cfg.output}."
        if added:
            said += (
                f" Added: {', '.join(added)}. What healthy pictures and steps look like comes from the data: "
                f"multismolvla-health fit --policy {cfg.output} --dataset ..."
            )
    if cfg.push:
        said += f" Pushed to {work.push(cfg.output, cfg.push, private=cfg.private)}."
    return said


@entry_point("error", interrupted="Interrupted; nothing half-written was left.", loads="lerobot")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0 when all is done, 1 on an error named on stderr, 130 when interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.stdout.write(export(parse_options(ExportConfig, argv)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
