"""What a row and a manifest hold, declared once; msgspec decodes and checks them.

msgspec names the first field that is missing, unknown or of the wrong type, and checks 107,120 rows in a
quarter of a second; pydantic, which is installed anyway, takes several times as long for objects of this
size.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

from multismolvla_eval.protocol.schedule import episode_key

#: Version of this format. 4: typed rows and manifest; fields renamed to the field's usual terms.
SCHEMA = 4

Count = Annotated[int, Meta(ge=0, lt=2**31)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0, lt=1e30)]
#: A film in the run's folder ``clips``: a page must not embed any other file.
ClipPath = Annotated[str, Meta(pattern=r"^clips/[^/]+\.webp$")]


class Durations(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where an episode's time went, in seconds."""

    total: Seconds = 0.0
    policy: Seconds = 0.0  # observations, inference, an expert's search
    env: Seconds = 0.0  # physics and resets
    render: Seconds = 0.0
    clip: Seconds = 0.0  # drawing what is recorded


class Gripper(Struct, forbid_unknown_fields=True):
    """Statistics of the last action component, which closes the gripper where it is positive."""

    closed: Share | None  # of the steps; None without steps
    switches: Count  # between opening and closing


class HealthRecord(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a policy thought of one stream during an episode, see `multismolvla.health`."""

    looks: Count  # at which it judged the stream
    absent: Count = 0  # of them, at which the stream counted as absent
    first: Count | None = None  # number of the first of these looks
    cause: str | None = None  # at that look
    score: float = 0.0  # greatest: how unlike a usable stream
    # Numbers of the looks at which it was absent; rows from before this was recorded tell only the first.
    absent_at: list[Count] = field(default_factory=list)


class AttackRecord(Struct, forbid_unknown_fields=True):
    """What the attacks on a policy found during an episode; values of the attack's objective."""

    looks: Count  # that were attacked
    clean: float  # of the clean pictures, mean over these looks
    control: float  # of pictures changed by random signs of the same radius, likewise
    reached: float  # of the attacked pictures, likewise
    weaker: Count  # looks at which the attack did no more than the random signs
    gradient: float  # smallest L2 norm of a gradient: 0 says that nothing was searched


class EpisodeRow(Struct, forbid_unknown_fields=True, kw_only=True):
    """One finished episode: one line of a result file.

    Raises:
        ValueError: a success has a cause of failure, or a failure none.
    """

    run: str  # fingerprint of the run, see RunManifest
    policy: str  # its name
    checkpoint: str  # hash of its weights and configuration
    suite: str
    # Of what makes the suite's episodes comparable: assets, step limit, initial states, rendering.
    suite_hash: str
    task_id: Count
    task: str = ""  # instruction
    condition: str  # canonical text
    episode: Count  # number within the cell, and of the initial state
    repeat: Count  # number of the repetition of a clean episode with other seeds
    init_state: Count  # that the environment used
    init_split: str | None = None  # which split of initial states it belongs to
    start: str | None = None  # hash of the simulator's state after the reset
    env_seed: Count | None = None
    noise_seed: Count | None = None  # of the policy
    success: bool  # within the step limit
    cause: str | None = None  # of a failure
    steps: Count  # made in the environment
    steps_to_success: Count | None = None
    # Whose observation the fault changed; None if the environment does not tell.
    fault_steps: Count | None = None
    first_fault_step: Count | None = None
    fault_looks: Count | None = None  # how many of the fault_steps the policy looked at
    actions: str | None = None  # hash of all executed actions
    gripper: Gripper | None = None
    # Hash of each picture and mask that entered the policy at its first look, by observation key.
    policy_inputs: dict[str, str] | None = None
    # Hash of what entered a multimodal encoder at the first look, by modality.
    encoder_inputs: dict[str, str] | None = None
    # How much each modality counted beside the others in the fusion, mean over all looks.
    modality_weight: dict[str, Share] | None = None
    health: dict[str, HealthRecord] | None = None  # by view.modality
    attack: AttackRecord | None = None  # under an attack that searches
    seconds: Durations | None = None
    worker: Count | None = None  # number of the process
    peak_memory_mb: Count | None = None  # of that process until then
    clip: ClipPath | None = None  # the episode's film, if it was kept
    time: str = ""  # when it finished, ISO 8601

    def __post_init__(self) -> None:
        if self.success == bool(self.cause):
            raise ValueError(f"success is {self.success}, but the cause of a failure {self.cause!r}")

    @property
    def key(self) -> str:
        """Identity within a run."""
        return episode_key(self)

    @property
    def crashed(self) -> bool:
        """Whether the episode's process died or hung: nothing that the policy did to the task."""
        return (self.cause or "").startswith("crash")


class SuiteFacts(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the environment of one suite tells of itself."""

    type: str  # LeRobot's environment type
    tasks: dict[int, str]  # instruction by task id
    max_steps: Count  # of an episode
    init_states: Count | None = None  # number of different ones; None if unknown
    init_state_splits: dict[str, list[int]] = field(default_factory=dict)  # [first, last] number by split
    init_split: str | None = None  # that is evaluated
    render_quality: str | None = None
    num_steps_wait: Count | None = None  # no-op steps after a reset
    mini_version: Count | None = None  # of the mini suite; None for other suites
    faultable: bool = True  # whether faults of sensors can be put on it
    fps: Count = 0  # control rate in Hz; 0 = unknown
    streams: list[str] = field(default_factory=lambda: ["rgb"])  # modalities that it delivers
    provenance: dict[str, str] = field(default_factory=dict)  # modality -> sensor or derived
    labels: list[str] = field(default_factory=list)  # names of the segmentation classes by id
    assets: str = ""  # their hash
    assets_standins: bool | None = None  # whether some of LIBERO's are visual stand-ins; None if unknown
    assets_differing: list[str] = field(default_factory=list)  # neither LIBERO's nor known stand-ins


class SuiteRecord(SuiteFacts, forbid_unknown_fields=True, kw_only=True):
    """A suite in the manifest."""

    suite_hash: str = ""  # of what two episodes must share to be compared; every row carries it
    complete: bool = False  # whether all of its tasks were evaluated


class PolicyFacts(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a policy tells of itself."""

    path: str  # as given in --policies
    type: str  # LeRobot's policy type, or the baseline's name
    checkpoint: str  # hash of weights and configuration
    reads: list[str] = field(default_factory=list)  # observation keys, by the environment's names
    modalities: list[str] = field(default_factory=list)  # of the pictures that it reads
    views: list[str] = field(default_factory=list)  # cameras of these pictures
    # ``view.modality`` or modality -> sensor or derived, where the policy has a say.
    provenance: dict[str, str] = field(default_factory=dict)
    # Of what it reads, the streams that it computes of their view's RGB where the environment has no sensor.
    derives: list[str] = field(default_factory=list)
    mask_reaches_policy: bool = False  # whether an announced loss reaches it, see policies/announcing.py
    needs_a_picture: bool = False  # whether that holds only as long as some picture is left
    privileged: bool = False  # whether it reads the simulator's state
    no_vision: str | None = None  # how its pictures were taken away; None for a policy that sees
    device: str | None = None
    parameters: int | None = None
    training_samples: int | None = None  # seen in training, earlier stages included; None if unknown
    peft: bool | None = None
    n_action_steps: int | None = None  # executed per look
    chunk_size: int | None = None  # planned per look
    vision_tower: str | None = None  # of a MultiSmolVLA policy
    attacks: list[str] = field(default_factory=list)  # types of attack (C6) that it can be put under
    description: str | None = None  # for readers


class RunFacts(Struct):
    """What environments and policies of a run tell of themselves once they are loaded."""

    suites: dict[str, SuiteFacts]
    cameras: list[str]  # of the environment, alike in all suites
    policies: dict[str, PolicyFacts]


class Hardware(Struct, forbid_unknown_fields=True):
    """The machine."""

    system: str = ""
    processor: str = ""
    cores: int | None = None
    memory_gb: float | None = None
    renderer: str = ""  # MuJoCo's back end
    threads_per_worker: int = 1


class MadeWith(Struct, forbid_unknown_fields=True):
    """What one call of the evaluation was made with."""

    time: str  # ISO 8601
    versions: dict[str, str] = field(default_factory=dict)  # of packages
    commit: str | None = None  # of the source
    hardware: Hardware = field(default_factory=Hardware)


class Comparable(Struct, forbid_unknown_fields=True):
    """What all episodes of a run share; two calls that differ in it are two runs.

    The batch size belongs to it, because matrix products round differently in batches of another size.
    """

    schema: int
    env_type: str
    env_options: dict[str, Any]
    seed: int
    corruption_version: str
    batch_size: int = 1
    # As given; not in the hash of runs that leave it to the checkpoints, as all did before it was recorded.
    missing_estimator: str | UnsetType = UNSET


class RunManifest(Struct, forbid_unknown_fields=True, kw_only=True):
    """``run.json``: what makes a run's episodes comparable, what was asked for, what they were made with."""

    schema: int  # version of this format
    fingerprint: str  # hash of `comparable`
    comparable: Comparable
    created: str  # time of the first call, ISO 8601
    level: str  # of the protocol, or ``custom``
    suites: dict[str, SuiteRecord]  # by name
    cameras: list[str]
    policies: dict[str, PolicyFacts]  # by name
    baseline: str  # the policy that the others are compared with
    conditions: list[str]  # canonical texts, in order
    clean_only: list[str] = field(default_factory=list)  # policies that run C0 alone
    clean_episodes: Count  # of C0, per task
    episodes: Count  # of each other condition, per task
    clean_repeats: Count = 1  # of C0, with other seeds
    workers: Count = 1  # of the last call
    calls: list[MadeWith] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)  # each call's command line
    remarks: list[str] = field(default_factory=list)  # given with --note
    # As given: environment's key -> policy's, for all policies or within a policy's name.
    rename_map: dict[str, str | dict[str, str]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    device: str | None = None  # as given
    estimator_sources: dict[str, str] = field(default_factory=dict)  # modality -> folder, as given
    episode_timeout: float = 0.0  # seconds
    synthetic: bool = False  # made up to test the report

    @property
    def provenance(self) -> dict[str, str]:
        """Modality -> ``sensor`` or ``derived``: of the environment's streams, alike in all suites."""
        return next(iter(self.suites.values())).provenance

    @property
    def streams(self) -> list[str]:
        """Modalities that the environment delivers, alike in all suites."""
        return next(iter(self.suites.values())).streams
