"""What a row and a manifest hold, declared once; msgspec decodes and checks them.

msgspec names the first field that is missing, unknown or of the wrong type, and checks 107,120 rows in a quarter of a
second; pydantic, which is installed anyway, takes several times as long for objects of this size.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from multismolvla_eval.protocol.schedule import episode_key

#: Version of this format. 4: typed rows and manifest; fields renamed to the field's usual terms.
SCHEMA = 4

Count = Annotated[int, Meta(ge=0, lt=2**31)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0, lt=1e30)]
#: A film in the run's folder ``clips``: a page must not embed any other file.
ClipPath = Annotated[str, Meta(pattern=r"^clips/[^/]+\.webp$")]


class Durations(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Where an episode's time went, in seconds.

    Attributes:
        total: all of it.
        policy: observations, inference, an expert's search.
        env: physics and resets.
        render: rendering.
        clip: drawing what is recorded.
    """

    total: Seconds = 0.0
    policy: Seconds = 0.0
    env: Seconds = 0.0
    render: Seconds = 0.0
    clip: Seconds = 0.0


class Gripper(Struct, forbid_unknown_fields=True):
    """Statistics of the last action component; a frozen gripper shows here.

    Attributes:
        closed: share of steps with a closing command (+1 closes in LIBERO); ``None`` without steps.
        switches: number of changes between opening and closing.
    """

    closed: Share | None
    switches: Count


class EpisodeRow(Struct, forbid_unknown_fields=True, kw_only=True):
    """One finished episode: one line of a result file.

    Attributes:
        run: fingerprint of the run, see `RunManifest`.
        policy: name of the policy.
        checkpoint: hash of its weights and configuration.
        suite: suite name.
        suite_hash: hash of what makes the suite's episodes comparable: assets, step limit, initial states, rendering.
        task_id: task within the suite.
        task: instruction.
        condition: canonical text of the condition.
        episode: number within the cell, and of the initial state.
        repeat: number of the repetition of a clean episode with other seeds.
        init_state: initial state that the environment used.
        init_split: which split of initial states it belongs to.
        start: hash of the simulator's state after the reset.
        env_seed: seed of the environment.
        noise_seed: seed of the policy's noise.
        success: whether the task was solved within the step limit.
        cause: why the episode failed; ``None`` for a success.
        steps: environment steps made.
        steps_to_success: the same for a success, else ``None``.
        fault_steps: steps whose observation was changed by the fault; ``None`` if the environment does not tell.
        first_fault_step: the first of them.
        fault_looks: how many of them the policy looked at.
        actions: hash of all executed actions.
        gripper: what the gripper did.
        policy_inputs: hash of each picture and mask that entered the policy at its first look, by observation key.
        encoder_inputs: hash of what entered a multimodal encoder at the first look, by modality.
        modality_weight: how much each modality counted beside the others in the fusion, mean over all looks.
        seconds: where the time went.
        worker: number of the process.
        peak_memory_mb: of that process until then.
        clip: the episode's film, if it was kept.
        time: when it finished, ISO 8601.

    Raises:
        ValueError: a success has a cause of failure, or a failure none.
    """

    run: str
    policy: str
    checkpoint: str
    suite: str
    suite_hash: str
    task_id: Count
    condition: str
    episode: Count
    repeat: Count
    init_state: Count
    success: bool
    steps: Count
    task: str = ""
    init_split: str | None = None
    start: str | None = None
    env_seed: Count | None = None
    noise_seed: Count | None = None
    cause: str | None = None
    steps_to_success: Count | None = None
    fault_steps: Count | None = None
    first_fault_step: Count | None = None
    fault_looks: Count | None = None
    actions: str | None = None
    gripper: Gripper | None = None
    policy_inputs: dict[str, str] | None = None
    encoder_inputs: dict[str, str] | None = None
    modality_weight: dict[str, Share] | None = None
    seconds: Durations | None = None
    worker: Count | None = None
    peak_memory_mb: Count | None = None
    clip: ClipPath | None = None
    time: str = ""

    def __post_init__(self) -> None:
        if self.success == bool(self.cause):
            raise ValueError(
                f"success is {self.success} and the cause of a failure {self.cause!r}: one contradicts the other"
            )

    @property
    def key(self) -> str:
        """Identity within a run."""
        return episode_key(self)

    @property
    def crashed(self) -> bool:
        """Whether the episode's process died or hung: nothing that the policy did to the task."""
        return (self.cause or "").startswith("crash")


class EnvironmentFacts(Struct, forbid_unknown_fields=True, kw_only=True):
    """What the environment of one suite tells of itself.

    Attributes:
        type: LeRobot's environment type.
        tasks: instruction by task id.
        max_steps: step limit of an episode.
        init_states: number of different initial states; ``None`` if unknown.
        init_state_splits: [first, last] number by split.
        init_split: the split that is evaluated.
        render_quality: of the renderer.
        num_steps_wait: no-op steps after a reset.
        mini_version: version of the mini suite; ``None`` for other suites.
        faultable: whether faults of sensors can be put on it.
        fps: control rate in Hz; 0 = unknown.
        streams: modalities that it delivers.
        provenance: modality -> ``sensor`` or ``derived``.
        labels: names of the segmentation classes by id.
        assets: hash of the assets.
        assets_standins: whether some of LIBERO's assets are visual stand-ins; ``None`` if unknown.
        assets_differing: files that are neither LIBERO's nor known stand-ins.
    """

    type: str
    tasks: dict[int, str]
    max_steps: Count
    init_states: Count | None = None
    init_state_splits: dict[str, list[int]] = field(default_factory=dict)
    init_split: str | None = None
    render_quality: str | None = None
    num_steps_wait: Count | None = None
    mini_version: Count | None = None
    faultable: bool = True
    fps: Count = 0
    streams: list[str] = field(default_factory=lambda: ["rgb"])
    provenance: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    assets: str = ""
    assets_standins: bool | None = None
    assets_differing: list[str] = field(default_factory=list)


class SuiteRecord(EnvironmentFacts, forbid_unknown_fields=True, kw_only=True):
    """A suite in the manifest.

    Attributes:
        suite_hash: hash of what two episodes must share to be compared; every row carries it.
        complete: whether all of its tasks were evaluated.
    """

    suite_hash: str = ""
    complete: bool = False


class PolicyFacts(Struct, forbid_unknown_fields=True, kw_only=True):
    """What a policy tells of itself.

    Attributes:
        path: as given in ``--policies``.
        type: LeRobot's policy type, or the baseline's name.
        checkpoint: hash of weights and configuration.
        reads: observation keys that it reads, by the environment's names.
        modalities: of the pictures that it reads.
        views: cameras of the pictures that it reads.
        provenance: ``view.modality`` or modality -> ``sensor`` or ``derived``, where the policy has a say.
        mask_reaches_policy: whether an announced loss reaches it, see `multismolvla_eval.policies.announcing`.
        needs_a_picture: whether that holds only as long as some picture is left.
        privileged: whether it reads the simulator's state.
        no_vision: how its pictures were taken away; ``None`` for a policy that sees.
        device: where it runs.
        parameters: number of parameters.
        peft: whether it has adapters.
        n_action_steps: actions executed per look.
        chunk_size: actions planned per look.
        vision_tower: of a MultiSmolVLA policy.
        description: for readers.
    """

    path: str
    type: str
    checkpoint: str
    reads: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    views: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    mask_reaches_policy: bool = False
    needs_a_picture: bool = False
    privileged: bool = False
    no_vision: str | None = None
    device: str | None = None
    parameters: int | None = None
    peft: bool | None = None
    n_action_steps: int | None = None
    chunk_size: int | None = None
    vision_tower: str | None = None
    description: str | None = None


class RunFacts(Struct):
    """What environments and policies of a run tell of themselves once they are loaded.

    Attributes:
        suites: by name.
        cameras: of the environment, alike in all suites.
        policies: by name.
    """

    suites: dict[str, EnvironmentFacts]
    cameras: list[str]
    policies: dict[str, PolicyFacts]


class Hardware(Struct, forbid_unknown_fields=True):
    """The machine: operating system, processor, cores, memory in GiB, MuJoCo's back end, threads per worker."""

    system: str = ""
    processor: str = ""
    cores: int | None = None
    memory_gb: float | None = None
    renderer: str = ""
    threads_per_worker: int = 1


class MadeWith(Struct, forbid_unknown_fields=True):
    """What one call of the evaluation was made with: time (ISO 8601), package versions, source commit, machine."""

    time: str
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
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


class RunManifest(Struct, forbid_unknown_fields=True, kw_only=True):
    """``run.json``: what makes a run's episodes comparable, what was asked for, and what they were made with.

    Attributes:
        schema: version of this format.
        fingerprint: hash of `comparable`.
        comparable: what all episodes share.
        created: time of the first call, ISO 8601.
        level: reporting level, or ``custom``.
        suites: by name.
        cameras: of the environment.
        policies: by name.
        baseline: name of the policy that the others are compared with.
        conditions: canonical texts, in order.
        clean_only: policies that run C0 alone.
        clean_episodes: per task, of C0.
        episodes: per task, of each other condition.
        clean_repeats: repetitions of C0 with other seeds.
        workers: processes of the last call.
        calls: what each call was made with.
        commands: each call's command line.
        remarks: given with ``--note``.
        rename_map: as given: environment's key -> policy's, for all policies or within a policy's name.
        plugins: modules that register policies or environments.
        device: as given.
        episode_timeout: seconds.
        synthetic: made up to test the report.
    """

    schema: int
    fingerprint: str
    comparable: Comparable
    created: str
    level: str
    suites: dict[str, SuiteRecord]
    cameras: list[str]
    policies: dict[str, PolicyFacts]
    baseline: str
    conditions: list[str]
    clean_only: list[str] = field(default_factory=list)
    clean_episodes: Count
    episodes: Count
    clean_repeats: Count = 1
    workers: Count = 1
    calls: list[MadeWith] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    rename_map: dict[str, str | dict[str, str]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    device: str | None = None
    episode_timeout: float = 0.0
    synthetic: bool = False

    @property
    def provenance(self) -> dict[str, str]:
        """Modality -> ``sensor`` or ``derived``: of the environment's streams, alike in all suites."""
        return next(iter(self.suites.values())).provenance
