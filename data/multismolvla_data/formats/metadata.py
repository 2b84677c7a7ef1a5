"""What our data sets tell about themselves: ``meta/multismolvla.json``, beside LeRobot's own metadata.

A file of our own, because LeRobot 0.6.1 drops unknown fields of info.json. It is written last, so its
presence also marks a data set as whole.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from multismolvla.modalities import Provenance, ViewMap
from multismolvla.system.files import write_json
from multismolvla.system.libero_assets import AssetIdentity
from multismolvla.system.versions import package_versions

METADATA_FILE = "meta/multismolvla.json"

#: JSON that is stored and compared, but not read by its entries.
JsonObject = dict[str, object]


class Start(msgspec.Struct, frozen=True):
    """Where a recorded episode begins."""

    init_state: int
    seed: int  # of the reset, the disturbance of actions and the thermal camera


class ReplayedDemo(msgspec.Struct, frozen=True):
    """The demonstration that an episode shows."""

    file: str
    demo: str  # group in the file, demo_<i>
    dropped_noops: int
    succeeded: bool


class JoinedPart(msgspec.Struct, frozen=True):
    """One of the data sets that were joined."""

    name: str  # of its folder
    episodes: int


class AnnotatedStream(msgspec.Struct, frozen=True):
    """A stream of an annotated data set."""

    view: str
    modality: str
    provenance: str
    valid_share: float | None = None  # share of usable pixels; depth only


class Verification(msgspec.Struct, frozen=True):
    """Comparison of stored ids with those of the pictures, decoded again."""

    frames: int = 0
    ids: int = 0
    mismatches: int = 0


class Annotation(msgspec.Struct):
    """How a data set was annotated."""

    streams: dict[str, AnnotatedStream]  # by picture key
    estimators: dict[str, JsonObject]  # modality -> recipe of what made its derived streams
    recipes: dict[str, JsonObject]  # token key -> what decides the ids
    policy_options: JsonObject  # of a policy that reads the data set, without this machine's folders
    notes: list[str]
    verified: Verification = msgspec.field(default_factory=Verification)
    versions: dict[str, str] = msgspec.field(default_factory=package_versions)
    registration: str = "assumed: all streams of a view show the same field of view, scaled"


class DatasetMetadata(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What one of our data sets tells about itself; tasks are named by their number."""

    identities: dict[str, JsonObject] = {}  # command -> what decided the content that it made
    suite: str | None = None
    render_quality: str | None = None
    tasks: dict[str, str] = {}  # instructions
    init_split: str | None = None
    starts: dict[str, list[Start]] = {}  # of a task's episodes, in order
    failed_starts: dict[str, list[Start]] = {}  # those that the expert did not solve
    demonstrations: list[ReplayedDemo] = []  # one for each episode
    episode_lengths: list[int] = []
    actions: str | None = None
    thermal: str | None = None
    standins: bool | None = None  # whether some of LIBERO's assets were stand-ins; None = unknown
    views: ViewMap = {}
    provenance: dict[str, str] = {}
    versions: dict[str, str] = {}
    source_episodes: list[int] | None = None  # where an annotation took only some
    joined_from: list[JoinedPart] = []
    annotation: Annotation | None = None


def simulated(suite: str, render_quality: str, assets: AssetIdentity | None = None) -> DatasetMetadata:
    """What all data sets from our simulators tell; who makes one fills in the rest.

    Args:
        suite: its name.
        render_quality: default or fast.
        assets: LIBERO's, of its suites.
    """
    from lerobot_env_multismolvla.cameras import suite_views

    views = suite_views(suite)
    return DatasetMetadata(
        suite=suite,
        render_quality=render_quality,
        standins=None if assets is None else assets.standins,
        views=views,
        provenance=dict.fromkeys(next(iter(views.values())), Provenance.SENSOR.value),
        thermal="simulated: temperature per body, rendered through segmentation, blurred, noisy",
        versions=package_versions(),
    )


def read_metadata(root: Path) -> DatasetMetadata:
    """The metadata of a data set's folder; empty where there are none.

    Raises:
        ValueError: the file is not what this version writes.
    """
    path = root / METADATA_FILE
    if not path.is_file():
        return DatasetMetadata()
    try:
        return msgspec.json.decode(path.read_bytes(), type=DatasetMetadata)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} cannot be read: {error}. Make the data set anew.") from error


def write_metadata(root: Path, metadata: DatasetMetadata) -> None:
    """Write the metadata of a data set; the last step of making one."""
    write_json(root / METADATA_FILE, msgspec.to_builtins(metadata))
