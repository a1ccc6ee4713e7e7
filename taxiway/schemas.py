"""Every message of ML v1 that crosses the wire, as a frozen Struct: its fields, their types and what they mean.

Inside the house a field holds a plain value; only the wire writes it in Google's way:

    Int64, Int32   int                                  "3" (a string), 3
    Timestamp      float, seconds since the epoch       "2026-11-01T09:30:00.000000Z"
    Duration       float, seconds                       "7200s"
    bytes          bytes                                base64
    a Literal      str, one of its words                the word

Unset is None for numbers, words of a Literal and messages (so an explicit 0 is kept apart from silence), the empty
value for strings, lists and maps, and False for booleans. A class's `wire_id` is the name of its schema in Google's
discovery document, where that is not simply `GoogleCloudMlV1__` and the class's own name. Names, types and words are
those of revision 20251213 of that document; the descriptions are ours.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

PACKAGE = "GoogleCloudMlV1__"

Int64 = Annotated[int, Meta(extra={"format": "int64"})]
Int32 = Annotated[int, Meta(extra={"format": "int32"})]
Timestamp = Annotated[float, Meta(extra={"format": "google-datetime"})]
Duration = Annotated[float, Meta(extra={"format": "google-duration"})]
FieldMask = Annotated[str, Meta(extra={"format": "google-fieldmask"})]


def says(description: str) -> Meta:
    """What a field means, in our own words."""
    return Meta(description=description)


def output(description: str) -> Meta:
    """The same for a field that the server alone sets; a caller's value for it is read and then ignored."""
    return Meta(description=description, extra_json_schema={"readOnly": True})


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """What every message is: immutable, built by keyword, camelCase when encoded, silent about what is unset."""

    wire_id: ClassVar[str] = ""


# ---- words ----------------------------------------------------------------------------------------------------------

AcceleratorType = Literal[
    "ACCELERATOR_TYPE_UNSPECIFIED",
    "NVIDIA_TESLA_K80",
    "NVIDIA_TESLA_P100",
    "NVIDIA_TESLA_V100",
    "NVIDIA_TESLA_P4",
    "NVIDIA_TESLA_T4",
    "NVIDIA_TESLA_A100",
    "TPU_V2",
    "TPU_V3",
    "TPU_V2_POD",
    "TPU_V3_POD",
    "TPU_V4_POD",
]
Algorithm = Literal["ALGORITHM_UNSPECIFIED", "GRID_SEARCH", "RANDOM_SEARCH"]
CapabilityType = Literal["TYPE_UNSPECIFIED", "TRAINING", "BATCH_PREDICTION", "ONLINE_PREDICTION"]
DataFormat = Literal["DATA_FORMAT_UNSPECIFIED", "JSON", "TEXT", "TF_RECORD", "TF_RECORD_GZIP", "CSV"]
Framework = Literal["FRAMEWORK_UNSPECIFIED", "TENSORFLOW", "SCIKIT_LEARN", "XGBOOST"]
Goal = Literal["GOAL_TYPE_UNSPECIFIED", "MAXIMIZE", "MINIMIZE"]
JobState = Literal[
    "STATE_UNSPECIFIED", "QUEUED", "PREPARING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED"
]
LogType = Literal["LOG_TYPE_UNSPECIFIED", "ADMIN_READ", "DATA_WRITE", "DATA_READ"]
MetricName = Literal["METRIC_NAME_UNSPECIFIED", "CPU_USAGE", "GPU_DUTY_CYCLE"]
OperationType = Literal[
    "OPERATION_TYPE_UNSPECIFIED",
    "CREATE_VERSION",
    "DELETE_VERSION",
    "DELETE_MODEL",
    "UPDATE_MODEL",
    "UPDATE_VERSION",
    "UPDATE_CONFIG",
]
ParameterType = Literal["PARAMETER_TYPE_UNSPECIFIED", "DOUBLE", "INTEGER", "CATEGORICAL", "DISCRETE"]
ScaleTier = Literal["BASIC", "STANDARD_1", "PREMIUM_1", "BASIC_GPU", "BASIC_TPU", "CUSTOM"]
ScaleType = Literal["NONE", "UNIT_LINEAR_SCALE", "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"]
StudyAlgorithm = Literal["ALGORITHM_UNSPECIFIED", "GAUSSIAN_PROCESS_BANDIT", "GRID_SEARCH", "RANDOM_SEARCH"]
StudyScaleType = Literal["SCALE_TYPE_UNSPECIFIED", "UNIT_LINEAR_SCALE", "UNIT_LOG_SCALE", "UNIT_REVERSE_LOG_SCALE"]
StudyState = Literal["STATE_UNSPECIFIED", "ACTIVE", "INACTIVE", "COMPLETED"]
TrialState = Literal["STATE_UNSPECIFIED", "REQUESTED", "ACTIVE", "COMPLETED", "STOPPING"]
VersionState = Literal["UNKNOWN", "READY", "CREATING", "FAILED", "DELETING", "UPDATING"]


# ---- what a training job asks for -----------------------------------------------------------------------------------


class AcceleratorConfig(Message, frozen=True, kw_only=True):
    """Accelerators of one kind on each machine of a role."""

    count: Annotated[Int64 | None, says("How many of them each machine has.")] = None
    type: Annotated[AcceleratorType | None, says("Which accelerator.")] = None


class DiskConfig(Message, frozen=True, kw_only=True):
    """The boot disk of a replica."""

    boot_disk_size_gb: Annotated[Int32 | None, says("Size in GB; 100 unless told.")] = None
    boot_disk_type: Annotated[str, says("pd-ssd (unless told) or pd-standard.")] = ""


class ReplicaConfig(Message, frozen=True, kw_only=True):
    """What each machine of one role (master, worker, parameter server, evaluator) looks like."""

    accelerator_config: Annotated[AcceleratorConfig | None, says("Accelerators of each replica.")] = None
    container_args: Annotated[
        tuple[str, ...], says("Arguments of the container; needs imageUri and excludes the job's args.")
    ] = ()
    container_command: Annotated[
        tuple[str, ...], says("Command that replaces the image's entry point; needs imageUri.")
    ] = ()
    disk_config: Annotated[DiskConfig | None, says("Boot disk of each replica.")] = None
    image_uri: Annotated[str, says("Container image to run; a role without one runs the master's.")] = ""
    tpu_tf_version: Annotated[str, says("Runtime version whose TensorFlow matches the image's, on TPU workers.")] = ""


class Scheduling(Message, frozen=True, kw_only=True):
    """How long a job may wait and run, and who goes first."""

    max_running_time: Annotated[
        Duration | None, says("Longest time in RUNNING before the job is cancelled; seven days unless told.")
    ] = None
    max_wait_time: Annotated[
        Duration | None, says("Longest time in QUEUED and PREPARING, at least 1800s; no limit unless told.")
    ] = None
    priority: Annotated[Int32 | None, says("0 to 1000; of two waiting jobs the higher starts first.")] = None


class EncryptionConfig(Message, frozen=True, kw_only=True):
    """The caller's own key for what a job leaves behind."""

    kms_key_name: Annotated[str, says("projects/P/locations/L/keyRings/R/cryptoKeys/K")] = ""


class ParameterSpec(Message, frozen=True, kw_only=True):
    """One hyperparameter: its name and the values it may take."""

    categorical_values: Annotated[tuple[str, ...], says("The values of a CATEGORICAL parameter.")] = ()
    discrete_values: Annotated[
        tuple[float, ...], says("The values of a DISCRETE parameter, strictly increasing, 1000 at most.")
    ] = ()
    max_value: Annotated[float | None, says("Largest value of a DOUBLE or INTEGER parameter.")] = None
    min_value: Annotated[float | None, says("Smallest value of a DOUBLE or INTEGER parameter.")] = None
    parameter_name: Annotated[str, says("Name; the trainer receives --NAME value. Unique in its job.")] = ""
    scale_type: Annotated[ScaleType | None, says("How a range is stretched before it is searched.")] = None
    type: Annotated[ParameterType | None, says("What kind of value the parameter has.")] = None


class HyperparameterSpec(Message, frozen=True, kw_only=True):
    """What a tuning job varies, what it looks at, and how often it tries."""

    algorithm: Annotated[Algorithm | None, says("How trials are chosen; unspecified is Bayesian search.")] = None
    enable_trial_early_stopping: Annotated[bool, says("Whether hopeless trials are ended early.")] = False
    goal: Annotated[Goal | None, says("Whether more or less of the metric is better.")] = None
    hyperparameter_metric_tag: Annotated[
        str, says("Name of the reported metric; training/hptuning/metric unless told.")
    ] = ""
    max_failed_trials: Annotated[Int32 | None, says("Failed trials that fail the job; 0 leaves it to us.")] = None
    max_parallel_trials: Annotated[Int32 | None, says("Trials that run at one time; 1 unless told.")] = None
    max_trials: Annotated[Int32 | None, says("Trials in all; 1 unless told.")] = None
    params: Annotated[tuple[ParameterSpec, ...], says("The hyperparameters that are searched.")] = ()
    resume_previous_job_id: Annotated[str, says("An earlier tuning job whose trials this one learns from.")] = ""


class TrainingInput(Message, frozen=True, kw_only=True):
    """What to train: the code, its arguments, its machines."""

    args: Annotated[tuple[str, ...], says("Arguments for the training program, in order.")] = ()
    enable_web_access: Annotated[bool, says("Whether shells into the replicas are offered while they run.")] = False
    encryption_config: Annotated[EncryptionConfig | None, says("The caller's own encryption key.")] = None
    evaluator_config: Annotated[ReplicaConfig | None, says("Replicas of the evaluator role.")] = None
    evaluator_count: Annotated[Int64 | None, says("How many evaluators (tier CUSTOM); needs evaluatorType.")] = None
    evaluator_type: Annotated[str, says("Machine type of an evaluator (tier CUSTOM).")] = ""
    hyperparameters: Annotated[HyperparameterSpec | None, says("Makes this a tuning job: what to search.")] = None
    job_dir: Annotated[str, says("gs:// folder for outputs; the program receives it as --job-dir.")] = ""
    master_config: Annotated[ReplicaConfig | None, says("Replica of the master role.")] = None
    master_type: Annotated[str, says("Machine type of the master (tier CUSTOM, and required there).")] = ""
    network: Annotated[str, says("Network that the job joins: projects/N/global/networks/NAME.")] = ""
    package_uris: Annotated[
        tuple[str, ...], says("gs:// addresses of the packages to install, the trainer's own first; 100 at most.")
    ] = ()
    parameter_server_config: Annotated[ReplicaConfig | None, says("Replicas of the parameter server role.")] = None
    parameter_server_count: Annotated[
        Int64 | None, says("How many parameter servers (tier CUSTOM); needs parameterServerType.")
    ] = None
    parameter_server_type: Annotated[str, says("Machine type of a parameter server (tier CUSTOM).")] = ""
    python_module: Annotated[str, says("Module that is run once the packages are installed: trainer.task")] = ""
    python_version: Annotated[str, says("Python of the runtime: 3.11")] = ""
    region: Annotated[str, says("Where the job runs: us-central1")] = ""
    runtime_version: Annotated[str, says("Runtime whose libraries the program finds; excludes an image.")] = ""
    scale_tier: Annotated[ScaleTier | None, says("A ready-made set of machines, or CUSTOM.")] = None
    scheduling: Annotated[Scheduling | None, says("Limits on waiting and running, and priority.")] = None
    service_account: Annotated[str, says("E-mail of the account that the program acts as.")] = ""
    use_chief_in_tf_config: Annotated[bool, says("Calls the master chief in TF_CONFIG; for containers only.")] = False
    worker_config: Annotated[ReplicaConfig | None, says("Replicas of the worker role.")] = None
    worker_count: Annotated[Int64 | None, says("How many workers (tier CUSTOM); needs workerType.")] = None
    worker_type: Annotated[str, says("Machine type of a worker (tier CUSTOM).")] = ""


# ---- what came of it ------------------------------------------------------------------------------------------------


class BuiltInAlgorithmOutput(Message, frozen=True, kw_only=True):
    """What a job with a built-in algorithm left."""

    framework: Annotated[str, says("Framework that trained the model.")] = ""
    model_path: Annotated[str, says("gs:// folder of the model, once the job succeeded.")] = ""
    python_version: Annotated[str, says("Python that trained it.")] = ""
    runtime_version: Annotated[str, says("Runtime that trained it.")] = ""


class HyperparameterMetric(Message, frozen=True, kw_only=True):
    """One reported value of the metric that a tuning job looks at."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_HyperparameterOutput_HyperparameterMetric"
    objective_value: Annotated[float | None, says("The value.")] = None
    training_step: Annotated[Int64 | None, says("The global step at which it was reported.")] = None


class HyperparameterOutput(Message, frozen=True, kw_only=True):
    """One trial of a tuning job."""

    all_metrics: Annotated[tuple[HyperparameterMetric, ...], says("Every reported value.")] = ()
    built_in_algorithm_output: Annotated[BuiltInAlgorithmOutput | None, says("For built-in algorithms.")] = None
    end_time: Annotated[Timestamp | None, output("When the trial ended.")] = None
    final_metric: Annotated[HyperparameterMetric | None, says("The last reported value.")] = None
    hyperparameters: Annotated[dict[str, str], says("The values that this trial was given, by name.")] = field(
        default_factory=dict
    )
    is_trial_stopped_early: Annotated[bool, says("Whether early stopping ended it.")] = False
    start_time: Annotated[Timestamp | None, output("When the trial started.")] = None
    state: Annotated[JobState | None, output("Where the trial is in its life.")] = None
    trial_id: Annotated[str, says("The trial's number, from 1.")] = ""
    web_access_uris: Annotated[dict[str, str], says("Addresses of the replicas' shells, by replica.")] = field(
        default_factory=dict
    )


class TrainingOutput(Message, frozen=True, kw_only=True):
    """What a training job has brought so far."""

    built_in_algorithm_output: Annotated[BuiltInAlgorithmOutput | None, says("For built-in algorithms.")] = None
    completed_trial_count: Annotated[Int64 | None, says("Trials that ended well.")] = None
    consumed_ml_units: Annotated[float | None, says("Machine time used, in the service's units.")] = field(
        default=None, name="consumedMLUnits"
    )
    hyperparameter_metric_tag: Annotated[str, says("Metric that the trials are ordered by.")] = ""
    is_built_in_algorithm_job: Annotated[bool, says("Whether a built-in algorithm ran.")] = False
    is_hyperparameter_tuning_job: Annotated[bool, says("Whether the job tunes hyperparameters.")] = False
    trials: Annotated[tuple[HyperparameterOutput, ...], says("The trials of a tuning job.")] = ()
    web_access_uris: Annotated[dict[str, str], output("Addresses of the replicas' shells, by replica.")] = field(
        default_factory=dict
    )


# ---- batch prediction -----------------------------------------------------------------------------------------------


class PredictionInput(Message, frozen=True, kw_only=True):
    """What to predict from, with which model, and where the answers go."""

    batch_size: Annotated[Int64 | None, says("Records in one call of the model; 64 unless told.")] = None
    data_format: Annotated[DataFormat | None, says("How the input files are written.")] = None
    input_paths: Annotated[tuple[str, ...], says("gs:// files or patterns to read.")] = ()
    max_worker_count: Annotated[Int64 | None, says("Most workers at one time; 10 unless told.")] = None
    model_name: Annotated[str, says("projects/P/models/M: its default version predicts.")] = ""
    output_data_format: Annotated[DataFormat | None, says("How the answers are written; JSON unless told.")] = None
    output_path: Annotated[str, says("gs:// folder for the answers.")] = ""
    region: Annotated[str, says("Where the job runs.")] = ""
    runtime_version: Annotated[str, says("Runtime that loads the model at `uri`.")] = ""
    signature_name: Annotated[str, says("Signature of the SavedModel; serving_default unless told.")] = ""
    uri: Annotated[str, says("gs:// folder of a model that is not deployed.")] = ""
    version_name: Annotated[str, says("projects/P/models/M/versions/V: this version predicts.")] = ""


class PredictionOutput(Message, frozen=True, kw_only=True):
    """What a batch prediction has brought so far."""

    error_count: Annotated[Int64 | None, says("Instances that could not be predicted.")] = None
    node_hours: Annotated[float | None, says("Machine time used, in hours.")] = None
    output_path: Annotated[str, says("gs:// folder of the answers.")] = ""
    prediction_count: Annotated[Int64 | None, says("Predictions written.")] = None


# ---- jobs -----------------------------------------------------------------------------------------------------------


class Job(Message, frozen=True, kw_only=True):
    """A piece of work: a training, or a batch prediction."""

    create_time: Annotated[Timestamp | None, output("When it was submitted.")] = None
    end_time: Annotated[Timestamp | None, output("When it ended, well or not.")] = None
    error_message: Annotated[str, output("Why it failed or was cancelled.")] = ""
    etag: Annotated[bytes, says("Changes with every update; send it back to update only what was read.")] = b""
    job_id: Annotated[str, says("Its name, chosen by who submits it; unique in the project for ever.")] = ""
    job_position: Annotated[Int64 | None, output("Place in the queue while QUEUED; 0 once scheduled.")] = None
    labels: Annotated[dict[str, str], says("The caller's own keys and values, to find jobs by.")] = field(
        default_factory=dict
    )
    prediction_input: Annotated[PredictionInput | None, says("Makes it a batch prediction.")] = None
    prediction_output: Annotated[PredictionOutput | None, output("Result of a batch prediction.")] = None
    start_time: Annotated[Timestamp | None, output("When it began to run.")] = None
    state: Annotated[JobState | None, output("Where it is in its life.")] = None
    training_input: Annotated[TrainingInput | None, says("Makes it a training.")] = None
    training_output: Annotated[TrainingOutput | None, output("Result of a training.")] = None


class ListJobsResponse(Message, frozen=True, kw_only=True):
    """A page of jobs."""

    jobs: Annotated[tuple[Job, ...], says("The jobs, newest first.")] = ()
    next_page_token: Annotated[str, says("Asks for the next page; absent on the last.")] = ""


class CancelJobRequest(Message, frozen=True, kw_only=True):
    """Nothing needs saying: the job is in the path."""


# ---- models and versions --------------------------------------------------------------------------------------------


class MetricSpec(Message, frozen=True, kw_only=True):
    """A load figure that scaling keeps near a target."""

    name: Annotated[MetricName | None, says("Which figure.")] = None
    target: Annotated[Int32 | None, says("Where to keep it, in percent.")] = None


class AutoScaling(Message, frozen=True, kw_only=True):
    """As many nodes as the traffic needs, within bounds."""

    max_nodes: Annotated[Int32 | None, says("Most nodes at any time.")] = None
    metrics: Annotated[tuple[MetricSpec, ...], says("Figures that decide how many.")] = ()
    min_nodes: Annotated[Int32 | None, says("Nodes that are always up; 0 lets an idle version sleep.")] = None


class ManualScaling(Message, frozen=True, kw_only=True):
    """A fixed number of nodes."""

    nodes: Annotated[Int32 | None, says("How many, for as long as the version is deployed.")] = None


class RequestLoggingConfig(Message, frozen=True, kw_only=True):
    """A table that receives a sample of the predictions."""

    bigquery_table_name: Annotated[str, says("project.dataset.table")] = ""
    sampling_percentage: Annotated[float | None, says("Share of the requests, from 0 to 1.")] = None


class IntegratedGradientsAttribution(Message, frozen=True, kw_only=True):
    """Explains by integrated gradients."""

    num_integral_steps: Annotated[Int32 | None, says("Steps along the path; begin with 50.")] = None


class SampledShapleyAttribution(Message, frozen=True, kw_only=True):
    """Explains by sampled Shapley values."""

    num_paths: Annotated[Int32 | None, says("Orders of the features that are tried.")] = None


class XraiAttribution(Message, frozen=True, kw_only=True):
    """Explains images by regions (XRAI)."""

    num_integral_steps: Annotated[Int32 | None, says("Steps along the path; begin with 50.")] = None


class ExplanationConfig(Message, frozen=True, kw_only=True):
    """How a version explains its predictions: one of three ways."""

    integrated_gradients_attribution: Annotated[
        IntegratedGradientsAttribution | None, says("For differentiable models.")
    ] = None
    sampled_shapley_attribution: Annotated[SampledShapleyAttribution | None, says("For any model.")] = None
    xrai_attribution: Annotated[XraiAttribution | None, says("For models of images.")] = None


class ContainerPort(Message, frozen=True, kw_only=True):
    """A port that a container listens on."""

    container_port: Annotated[Int32 | None, says("1 to 65535; 8080 unless told.")] = None


class EnvVar(Message, frozen=True, kw_only=True):
    """A variable of a container's environment."""

    name: Annotated[str, says("A C identifier that does not begin with AIP_.")] = ""
    value: Annotated[str, says("$(NAME) stands for an earlier variable; $$ for a dollar sign.")] = ""


class ContainerSpec(Message, frozen=True, kw_only=True):
    """A custom container that predicts."""

    args: Annotated[tuple[str, ...], says("Arguments, in place of the image's.")] = ()
    command: Annotated[tuple[str, ...], says("Command, in place of the image's entry point.")] = ()
    env: Annotated[tuple[EnvVar, ...], says("Variables of its environment, in order.")] = ()
    image: Annotated[str, says("The image.")] = ""
    ports: Annotated[tuple[ContainerPort, ...], says("Ports; requests go to the first.")] = ()


class RouteMap(Message, frozen=True, kw_only=True):
    """Paths of a custom container's HTTP server."""

    health: Annotated[str, says("GET here tells whether it is well; /v1/models/M/versions/V unless told.")] = ""
    predict: Annotated[str, says("Predictions are posted here; /v1/models/M/versions/V:predict unless told.")] = ""


class Version(Message, frozen=True, kw_only=True):
    """A trained model, deployed so that it answers."""

    accelerator_config: Annotated[AcceleratorConfig | None, says("Accelerators of each node.")] = None
    auto_scaling: Annotated[AutoScaling | None, says("Nodes by traffic; excludes manualScaling.")] = None
    container: Annotated[ContainerSpec | None, says("A custom container in place of a runtime.")] = None
    create_time: Annotated[Timestamp | None, output("When it was made.")] = None
    deployment_uri: Annotated[str, says("gs:// folder of the model; copied when the version is made.")] = ""
    description: Annotated[str, says("Whatever helps to tell it from others.")] = ""
    error_message: Annotated[str, output("Why it failed.")] = ""
    etag: Annotated[bytes, says("Changes with every update; send it back to update only what was read.")] = b""
    explanation_config: Annotated[ExplanationConfig | None, says("How it explains its predictions.")] = None
    framework: Annotated[Framework | None, says("What made the model; found out from its files if unset.")] = None
    is_default: Annotated[bool, output("Whether it answers for its model.")] = False
    labels: Annotated[dict[str, str], says("The caller's own keys and values.")] = field(default_factory=dict)
    last_migration_model_id: Annotated[str, output("Where it was last migrated to.")] = ""
    last_migration_time: Annotated[Timestamp | None, output("When it was last migrated.")] = None
    last_use_time: Annotated[Timestamp | None, output("When it last predicted.")] = None
    machine_type: Annotated[str, says("Machine of a node.")] = ""
    manual_scaling: Annotated[ManualScaling | None, says("A fixed number of nodes; excludes autoScaling.")] = None
    name: Annotated[str, says("V when it is made; projects/P/models/M/versions/V when it is read.")] = ""
    package_uris: Annotated[tuple[str, ...], says("gs:// packages that predictionClass needs.")] = ()
    prediction_class: Annotated[str, says("module.Class with from_path and predict, that answers.")] = ""
    python_version: Annotated[str, says("Python of the runtime.")] = ""
    request_logging_config: Annotated[
        RequestLoggingConfig | None, says("Table for a sample of the requests; set by an update only.")
    ] = None
    routes: Annotated[RouteMap | None, says("Paths of the custom container.")] = None
    runtime_version: Annotated[str, says("Runtime that loads the model.")] = ""
    service_account: Annotated[str, says("E-mail of the account that its own code acts as.")] = ""
    state: Annotated[VersionState | None, output("Where it is in its life.")] = None


class Model(Message, frozen=True, kw_only=True):
    """A named problem; its versions are the answers to it so far."""

    default_version: Annotated[Version | None, output("The version that answers when none is named.")] = None
    description: Annotated[str, says("Whatever helps to tell it from others.")] = ""
    etag: Annotated[bytes, says("Changes with every update; send it back to update only what was read.")] = b""
    labels: Annotated[dict[str, str], says("The caller's own keys and values.")] = field(default_factory=dict)
    name: Annotated[str, says("M when it is made; projects/P/models/M when it is read.")] = ""
    online_prediction_console_logging: Annotated[bool, says("Whether its servers' output is logged.")] = False
    online_prediction_logging: Annotated[bool, says("Whether each prediction is logged.")] = False
    regions: Annotated[tuple[str, ...], says("Where it is deployed; one region, us-central1 unless told.")] = ()


class ListModelsResponse(Message, frozen=True, kw_only=True):
    """A page of models."""

    models: Annotated[tuple[Model, ...], says("The models.")] = ()
    next_page_token: Annotated[str, says("Asks for the next page; absent on the last.")] = ""


class ListVersionsResponse(Message, frozen=True, kw_only=True):
    """A page of a model's versions."""

    next_page_token: Annotated[str, says("Asks for the next page; absent on the last.")] = ""
    versions: Annotated[tuple[Version, ...], says("The versions.")] = ()


class SetDefaultVersionRequest(Message, frozen=True, kw_only=True):
    """Nothing needs saying: the version is in the path."""


# ---- predictions ----------------------------------------------------------------------------------------------------


class HttpBody(Message, frozen=True, kw_only=True):
    """A body that is passed on as it is, whatever it holds."""

    wire_id: ClassVar[str] = "GoogleApi__HttpBody"
    content_type: Annotated[str, says("Its media type.")] = ""
    data: Annotated[bytes, says("Its bytes.")] = b""
    extensions: Annotated[tuple[dict[str, Any], ...], says("What an application adds to it.")] = ()


class PredictRequest(Message, frozen=True, kw_only=True):
    """Instances to predict; the body itself is the JSON with `instances`."""

    http_body: Annotated[HttpBody | None, says("The body, as it came.")] = None


class ExplainRequest(Message, frozen=True, kw_only=True):
    """Instances whose predictions are to be explained."""

    http_body: Annotated[HttpBody | None, says("The body, as it came.")] = None


# ---- projects and places --------------------------------------------------------------------------------------------


class Config(Message, frozen=True, kw_only=True):
    """Accounts that the service uses besides its own."""

    tpu_service_account: Annotated[str, says("Account on TPU nodes.")] = ""


class GetConfigResponse(Message, frozen=True, kw_only=True):
    """Whom to grant rights to, so that the service may read and write a project's buckets."""

    config: Annotated[Config | None, says("Further accounts.")] = None
    service_account: Annotated[str, says("E-mail of the service's account for this project.")] = ""
    service_account_project: Annotated[Int64 | None, says("Number of the project that it belongs to.")] = None


class Capability(Message, frozen=True, kw_only=True):
    """Something that a location offers."""

    available_accelerators: Annotated[tuple[AcceleratorType, ...], says("Accelerators that come with it.")] = ()
    type: Annotated[CapabilityType | None, says("What it is.")] = None


class Location(Message, frozen=True, kw_only=True):
    """A region, and what it offers."""

    capabilities: Annotated[tuple[Capability, ...], says("What can be done there.")] = ()
    name: Annotated[str, says("projects/P/locations/L")] = ""


class ListLocationsResponse(Message, frozen=True, kw_only=True):
    """A page of locations."""

    locations: Annotated[tuple[Location, ...], says("Locations that offer anything.")] = ()
    next_page_token: Annotated[str, says("Asks for the next page; absent on the last.")] = ""


# ---- operations -----------------------------------------------------------------------------------------------------


class Status(Message, frozen=True, kw_only=True):
    """An error, as google.rpc says it."""

    wire_id: ClassVar[str] = "GoogleRpc__Status"
    code: Annotated[Int32 | None, says("Number of the google.rpc.Code.")] = None
    details: Annotated[tuple[dict[str, Any], ...], says("More about it, each with its @type.")] = ()
    message: Annotated[str, says("What happened, in a sentence.")] = ""


class Operation(Message, frozen=True, kw_only=True):
    """Work that outlives its request: ask for it again until it is done."""

    wire_id: ClassVar[str] = "GoogleLongrunning__Operation"
    done: Annotated[bool, says("Whether it has ended: then error or response is there.")] = False
    error: Annotated[Status | None, says("Why it failed or was cancelled.")] = None
    metadata: Annotated[dict[str, Any], says("What it works on and since when, with its @type.")] = field(
        default_factory=dict
    )
    name: Annotated[str, says("projects/P/operations/O")] = ""
    response: Annotated[dict[str, Any], says("What it made, with its @type.")] = field(default_factory=dict)


class OperationMetadata(Message, frozen=True, kw_only=True):
    """What an operation on a model or version works on."""

    create_time: Annotated[Timestamp | None, says("When it was asked for.")] = None
    end_time: Annotated[Timestamp | None, says("When it ended.")] = None
    is_cancellation_requested: Annotated[bool, says("Whether somebody asked to cancel it.")] = False
    labels: Annotated[dict[str, str], says("Labels of the model or version.")] = field(default_factory=dict)
    model_name: Annotated[str, says("projects/P/models/M")] = ""
    operation_type: Annotated[OperationType | None, says("What it does.")] = None
    project_number: Annotated[Int64 | None, says("Number of the project.")] = None
    start_time: Annotated[Timestamp | None, says("When it began.")] = None
    version: Annotated[Version | None, says("The version it works on.")] = None


class ListOperationsResponse(Message, frozen=True, kw_only=True):
    """A page of operations."""

    wire_id: ClassVar[str] = "GoogleLongrunning__ListOperationsResponse"
    next_page_token: Annotated[str, says("Asks for the next page; absent on the last.")] = ""
    operations: Annotated[tuple[Operation, ...], says("The operations.")] = ()
    unreachable: Annotated[tuple[str, ...], says("Places that did not answer.")] = ()


class Empty(Message, frozen=True, kw_only=True):
    """Nothing, said politely."""

    wire_id: ClassVar[str] = "GoogleProtobuf__Empty"


# ---- who may ---------------------------------------------------------------------------------------------------------


class Expr(Message, frozen=True, kw_only=True):
    """A condition in the Common Expression Language."""

    wire_id: ClassVar[str] = "GoogleType__Expr"
    description: Annotated[str, says("What it is for.")] = ""
    expression: Annotated[str, says("The condition itself.")] = ""
    location: Annotated[str, says("Where it was written, for messages about it.")] = ""
    title: Annotated[str, says("A short name.")] = ""


class Binding(Message, frozen=True, kw_only=True):
    """A role, and who has it."""

    wire_id: ClassVar[str] = "GoogleIamV1__Binding"
    condition: Annotated[Expr | None, says("Holds only while this is true.")] = None
    members: Annotated[tuple[str, ...], says("user:, serviceAccount:, group: or domain: and a name; allUsers.")] = ()
    role: Annotated[str, says("roles/ml.viewer and the like.")] = ""


class AuditLogConfig(Message, frozen=True, kw_only=True):
    """One kind of access that is logged."""

    wire_id: ClassVar[str] = "GoogleIamV1__AuditLogConfig"
    exempted_members: Annotated[tuple[str, ...], says("Whose access is not logged.")] = ()
    log_type: Annotated[LogType | None, says("Which kind.")] = None


class AuditConfig(Message, frozen=True, kw_only=True):
    """What is logged about a service."""

    wire_id: ClassVar[str] = "GoogleIamV1__AuditConfig"
    audit_log_configs: Annotated[tuple[AuditLogConfig, ...], says("The kinds of access.")] = ()
    service: Annotated[str, says("The service, or allServices.")] = ""


class Policy(Message, frozen=True, kw_only=True):
    """Who may do what with a resource."""

    wire_id: ClassVar[str] = "GoogleIamV1__Policy"
    audit_configs: Annotated[tuple[AuditConfig, ...], says("What is logged.")] = ()
    bindings: Annotated[tuple[Binding, ...], says("Roles and their members.")] = ()
    etag: Annotated[bytes, says("Changes with every update; send it back to update only what was read.")] = b""
    version: Annotated[Int32 | None, says("Form of the policy: 0, 1, or 3 with conditions.")] = None


class SetIamPolicyRequest(Message, frozen=True, kw_only=True):
    """A policy that takes the place of the present one."""

    wire_id: ClassVar[str] = "GoogleIamV1__SetIamPolicyRequest"
    policy: Annotated[Policy | None, says("The whole policy.")] = None
    update_mask: Annotated[FieldMask, says("Fields to replace; bindings and etag unless told.")] = ""


class TestIamPermissionsRequest(Message, frozen=True, kw_only=True):
    """Permissions that a caller wonders about."""

    __test__: ClassVar[bool] = False  # pytest collects classes named Test*
    wire_id: ClassVar[str] = "GoogleIamV1__TestIamPermissionsRequest"
    permissions: Annotated[tuple[str, ...], says("Permissions, without wildcards.")] = ()


class TestIamPermissionsResponse(Message, frozen=True, kw_only=True):
    """Those of them that the caller has."""

    __test__: ClassVar[bool] = False
    wire_id: ClassVar[str] = "GoogleIamV1__TestIamPermissionsResponse"
    permissions: Annotated[tuple[str, ...], says("Permissions that the caller has.")] = ()


# ---- studies and their trials ---------------------------------------------------------------------------------------


class StudyMetricSpec(Message, frozen=True, kw_only=True):
    """A figure that a study makes better."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfig_MetricSpec"
    goal: Annotated[Goal | None, says("Whether more or less of it is better.")] = None
    metric: Annotated[str, says("Its name.")] = ""


class DoubleValueSpec(Message, frozen=True, kw_only=True):
    """A range of real numbers."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_DoubleValueSpec"
    max_value: Annotated[float | None, says("Largest value.")] = None
    min_value: Annotated[float | None, says("Smallest value.")] = None


class IntegerValueSpec(Message, frozen=True, kw_only=True):
    """A range of whole numbers."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_IntegerValueSpec"
    max_value: Annotated[Int64 | None, says("Largest value.")] = None
    min_value: Annotated[Int64 | None, says("Smallest value.")] = None


class CategoricalValueSpec(Message, frozen=True, kw_only=True):
    """A set of words."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_CategoricalValueSpec"
    values: Annotated[tuple[str, ...], says("The words.")] = ()


class DiscreteValueSpec(Message, frozen=True, kw_only=True):
    """A set of numbers."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_DiscreteValueSpec"
    values: Annotated[tuple[float, ...], says("The numbers, strictly increasing.")] = ()


class MatchingParentCategoricalValueSpec(Message, frozen=True, kw_only=True):
    """Words of the parent parameter under which a child is searched."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_MatchingParentCategoricalValueSpec"
    values: Annotated[tuple[str, ...], says("Some of the parent's words.")] = ()


class MatchingParentDiscreteValueSpec(Message, frozen=True, kw_only=True):
    """Numbers of the parent parameter under which a child is searched."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_MatchingParentDiscreteValueSpec"
    values: Annotated[tuple[float, ...], says("Some of the parent's numbers.")] = ()


class MatchingParentIntValueSpec(Message, frozen=True, kw_only=True):
    """Whole numbers of the parent parameter under which a child is searched."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfigParameterSpec_MatchingParentIntValueSpec"
    values: Annotated[tuple[Int64, ...], says("Numbers in the parent's range.")] = ()


class StudyParameterSpec(Message, frozen=True, kw_only=True):
    """One parameter of a study, and those that exist only under some of its values."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_StudyConfig_ParameterSpec"
    categorical_value_spec: Annotated[CategoricalValueSpec | None, says("Values if CATEGORICAL.")] = None
    child_parameter_specs: Annotated[tuple[StudyParameterSpec, ...], says("Parameters under this one.")] = ()
    discrete_value_spec: Annotated[DiscreteValueSpec | None, says("Values if DISCRETE.")] = None
    double_value_spec: Annotated[DoubleValueSpec | None, says("Values if DOUBLE.")] = None
    integer_value_spec: Annotated[IntegerValueSpec | None, says("Values if INTEGER.")] = None
    parameter: Annotated[str, says("Its name; unique in the study.")] = ""
    parent_categorical_values: Annotated[
        MatchingParentCategoricalValueSpec | None, says("Under which words of its parent it exists.")
    ] = None
    parent_discrete_values: Annotated[
        MatchingParentDiscreteValueSpec | None, says("Under which numbers of its parent it exists.")
    ] = None
    parent_int_values: Annotated[
        MatchingParentIntValueSpec | None, says("Under which whole numbers of its parent it exists.")
    ] = None
    scale_type: Annotated[StudyScaleType | None, says("How a range is stretched before it is searched.")] = None
    type: Annotated[ParameterType | None, says("What kind of value it has.")] = None


class DecayCurveAutomatedStoppingConfig(Message, frozen=True, kw_only=True):
    """Ends a trial whose curve, drawn on, would not reach the best."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_AutomatedStoppingConfig_DecayCurveAutomatedStoppingConfig"
    use_elapsed_time: Annotated[bool, says("Draws the curve over time, not over steps.")] = False


class MedianAutomatedStoppingConfig(Message, frozen=True, kw_only=True):
    """Ends a trial that is worse than the median of the others."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_AutomatedStoppingConfig_MedianAutomatedStoppingConfig"
    use_elapsed_time: Annotated[bool, says("Compares at the same time, not at the same step.")] = False


class AutomatedStoppingConfig(Message, frozen=True, kw_only=True):
    """How hopeless trials are told: one of two ways."""

    decay_curve_stopping_config: Annotated[DecayCurveAutomatedStoppingConfig | None, says("By their curve.")] = None
    median_automated_stopping_config: Annotated[MedianAutomatedStoppingConfig | None, says("By the median.")] = None


class StudyConfig(Message, frozen=True, kw_only=True):
    """What a study searches and for what."""

    algorithm: Annotated[StudyAlgorithm | None, says("How trials are chosen.")] = None
    automated_stopping_config: Annotated[AutomatedStoppingConfig | None, says("When trials end early.")] = None
    metrics: Annotated[tuple[StudyMetricSpec, ...], says("The figures to make better.")] = ()
    parameters: Annotated[tuple[StudyParameterSpec, ...], says("The parameters to search.")] = ()


class Study(Message, frozen=True, kw_only=True):
    """A search for good parameters, made of trials."""

    create_time: Annotated[Timestamp | None, output("When it was made.")] = None
    inactive_reason: Annotated[str, output("Why it is INACTIVE.")] = ""
    name: Annotated[str, output("projects/P/locations/L/studies/S")] = ""
    state: Annotated[StudyState | None, output("Where it is in its life.")] = None
    study_config: Annotated[StudyConfig | None, says("What it searches.")] = None


class ListStudiesResponse(Message, frozen=True, kw_only=True):
    """The studies of a location."""

    studies: Annotated[tuple[Study, ...], says("The studies.")] = ()


class MeasurementMetric(Message, frozen=True, kw_only=True):
    """One figure of a measurement."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_Measurement_Metric"
    metric: Annotated[str, says("Its name.")] = ""
    value: Annotated[float | None, says("Its value.")] = None


class Measurement(Message, frozen=True, kw_only=True):
    """The figures of a trial at one moment."""

    elapsed_time: Annotated[Duration | None, output("How long the trial had run.")] = None
    metrics: Annotated[tuple[MeasurementMetric, ...], says("The figures.")] = ()
    step_count: Annotated[Int64 | None, says("Steps trained so far.")] = None


class TrialParameter(Message, frozen=True, kw_only=True):
    """The value that a trial has for one parameter."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1_Trial_Parameter"
    float_value: Annotated[float | None, says("If DOUBLE or DISCRETE.")] = None
    int_value: Annotated[Int64 | None, says("If INTEGER.")] = None
    parameter: Annotated[str, says("Its name.")] = ""
    string_value: Annotated[str, says("If CATEGORICAL.")] = ""


class Trial(Message, frozen=True, kw_only=True):
    """One try of a study: parameters, and what came of them."""

    client_id: Annotated[str, output("Who first asked for it.")] = ""
    end_time: Annotated[Timestamp | None, output("When it was completed.")] = None
    final_measurement: Annotated[Measurement | None, says("The measurement that counts.")] = None
    infeasible_reason: Annotated[str, output("Why its parameters cannot be tried.")] = ""
    measurements: Annotated[tuple[Measurement, ...], says("All of them, by steps and time.")] = ()
    name: Annotated[str, output("projects/P/locations/L/studies/S/trials/T")] = ""
    parameters: Annotated[tuple[TrialParameter, ...], says("The values it tries.")] = ()
    start_time: Annotated[Timestamp | None, output("When it started.")] = None
    state: Annotated[TrialState | None, says("Where it is in its life.")] = None
    trial_infeasible: Annotated[bool, output("Whether its parameters cannot be tried at all.")] = False


class ListTrialsResponse(Message, frozen=True, kw_only=True):
    """The trials of a study."""

    trials: Annotated[tuple[Trial, ...], says("The trials.")] = ()


class SuggestTrialsRequest(Message, frozen=True, kw_only=True):
    """Asks for trials to try next."""

    client_id: Annotated[str, says("Who asks; the same asker gets its pending trials again.")] = ""
    suggestion_count: Annotated[Int32 | None, says("How many.")] = None


class SuggestTrialsMetadata(Message, frozen=True, kw_only=True):
    """What a request for trials works on."""

    client_id: Annotated[str, says("Who asked.")] = ""
    create_time: Annotated[Timestamp | None, says("When.")] = None
    study: Annotated[str, says("The study.")] = ""
    suggestion_count: Annotated[Int32 | None, says("How many were asked for.")] = None


class SuggestTrialsResponse(Message, frozen=True, kw_only=True):
    """Trials to try next."""

    end_time: Annotated[Timestamp | None, says("When the choice ended.")] = None
    start_time: Annotated[Timestamp | None, says("When the choice began.")] = None
    study_state: Annotated[StudyState | None, says("Where the study is in its life.")] = None
    trials: Annotated[tuple[Trial, ...], says("The trials.")] = ()


class AddTrialMeasurementRequest(Message, frozen=True, kw_only=True):
    """Figures of a running trial."""

    measurement: Annotated[Measurement | None, says("The figures.")] = None


class CompleteTrialRequest(Message, frozen=True, kw_only=True):
    """The end of a trial."""

    final_measurement: Annotated[Measurement | None, says("What counts; the best so far unless told.")] = None
    infeasible_reason: Annotated[str, says("Why it cannot be tried.")] = ""
    trial_infeasible: Annotated[bool, says("Whether its parameters cannot be tried at all.")] = False


class CheckTrialEarlyStoppingStateRequest(Message, frozen=True, kw_only=True):
    """Nothing needs saying: the trial is in the path."""


class CheckTrialEarlyStoppingStateMetadata(Message, frozen=True, kw_only=True):
    """What a question about early stopping works on."""

    wire_id: ClassVar[str] = "GoogleCloudMlV1__CheckTrialEarlyStoppingStateMetatdata"  # spelled so by Google
    create_time: Annotated[Timestamp | None, says("When it was asked.")] = None
    study: Annotated[str, says("The study.")] = ""
    trial: Annotated[str, says("The trial.")] = ""


class CheckTrialEarlyStoppingStateResponse(Message, frozen=True, kw_only=True):
    """Whether a trial should go on."""

    end_time: Annotated[Timestamp | None, says("When the decision ended.")] = None
    should_stop: Annotated[bool, says("Whether to end it.")] = False
    start_time: Annotated[Timestamp | None, says("When the decision began.")] = None


class StopTrialRequest(Message, frozen=True, kw_only=True):
    """Nothing needs saying: the trial is in the path."""


class ListOptimalTrialsRequest(Message, frozen=True, kw_only=True):
    """Nothing needs saying: the study is in the path."""


class ListOptimalTrialsResponse(Message, frozen=True, kw_only=True):
    """The best trials: one, or as many as no other beats in every figure."""

    trials: Annotated[tuple[Trial, ...], says("The trials.")] = ()


def wire_id(kind: type[Message]) -> str:
    """The name of a message's schema in the discovery document: wire_id(Job) is GoogleCloudMlV1__Job."""
    return kind.wire_id or PACKAGE + kind.__name__


MESSAGES = {
    wire_id(kind): kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}
