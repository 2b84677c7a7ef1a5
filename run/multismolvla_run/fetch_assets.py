"""``multismolvla-doctor --fetch_assets``: bring LIBERO's meshes and scenes to this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from multismolvla.system.command import CommandError
from multismolvla.system.libero_assets import (
    ASSETS_VARIABLE,
    HUB_DATASET,
    identify,
    missing_files,
    missing_folders,
    own_folder,
)

LICENCE = (
    "Licence: LIBERO publishes the files in its MIT-licensed repository. The objects come from NVIDIA HOPE, "
    "Google Scanned Objects and TurboSquid, which have terms of their own; do not redistribute them without "
    "checking."
)


def fetch_assets(folder: Path) -> list[str]:
    """Download the hub data set with a progress bar, or continue a download that was cut.

    Returns:
        Lines to print: what is there now, and what to set.

    Raises:
        CommandError: the hub or its data set cannot be had, the disk is full, or what arrived is incomplete.
    """
    target = folder.expanduser().absolute()
    if not missing_folders(target) and not missing_files(target):
        return [f"Already complete: {target}", *_what_is_there(target)]
    sys.stderr.write(f"Fetching the hub data set {HUB_DATASET} (a few hundred MB) into {target}\n{LICENCE}\n")
    # Imported here: the doctor must speak where huggingface_hub does not load.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(HUB_DATASET, repo_type="dataset", local_dir=target)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CommandError(
            f"Cannot fetch {HUB_DATASET}: {type(error).__name__}: {error}\n"
            f"The same command continues where it stopped. {_by_hand(target)}"
        ) from error
    missing = missing_folders(target) or missing_files(target)
    if missing:
        raise CommandError(
            f"{target} is incomplete after the download: {len(missing)} missing, the first is {missing[0]}. "
            f"The same command fetches what is missing. {_by_hand(target)}"
        )
    return [f"Fetched: {target}", *_what_is_there(target)]


def _what_is_there(target: Path) -> list[str]:
    files = [p for p in target.rglob("*") if p.is_file() and ".cache" not in p.relative_to(target).parts]
    megabytes = sum(p.stat().st_size for p in files) / 1e6
    identity = identify(target)
    if identity.standins:
        whose = "with visual stand-ins: figures are not comparable with published ones"
    elif identity.differing:
        whose = f"unknown: {len(identity.differing)} files differ from LIBERO's, e.g. {identity.differing[0]}"
    else:
        whose = "LIBERO's own as far as known"
    lines = [f"{len(files)} files, {megabytes:.0f} MB; assets {identity.hash}, {whose}", LICENCE]
    if target != own_folder():
        lines.append(
            f"Tell the environment: export {ASSETS_VARIABLE}={target} (or --env.libero_assets={target})"
        )
    return lines


def _by_hand(target: Path) -> str:
    return (
        f"By hand: on a machine with network access `hf download {HUB_DATASET} --repo-type dataset "
        "--local-dir assets` (or copy libero/libero/assets of github.com/Lifelong-Robot-Learning/LIBERO), "
        f"bring that folder here, and set {ASSETS_VARIABLE} to it or put its content into {target}. "
        "HF_HUB_OFFLINE must not be set while fetching. The mini suite needs no assets."
    )
