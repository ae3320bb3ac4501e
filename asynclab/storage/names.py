"""What lies in the folder of a run, and in that of a sweep."""

CONFIG = "config.yaml"  # the resolved settings
RUN = "run.json"  # what made it: command, overrides, revision, packages, machine
RECORD = "record.csv"  # of its updates, with distributed.record (simulation/tape.py)
METRICS = "metrics.jsonl"  # everything that was logged (metrics.py)
SUMMARY = "summary.json"  # what it ended with
TRAIN_LOG = "train.log"  # what the console was told, but for its table
TRACKED = "tracked.json"  # which runs of Weights & Biases and MLflow are this one (run/trackers.py)
FAILURE = "failure.json"  # why it failed
HYDRA = ".hydra"  # of the last command, and in folders of those before
LOCK = ".lock"  # held while it is written
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
CURVE_IMAGE, SESSIONS_IMAGE, REPORT = "curve.png", "sessions.png", "report.html"
EVALUATIONS, VIDEOS = "evaluations", "videos"

WEIGHTS, EVALUATION = "weights.npz", "evaluation.json"  # of an agent of a zoo, which has no checkpoints
MANIFEST = "manifest.json"  # size and sha256 of the files beside it: of such an agent, or of a checkpoint

JOBS = ".jobs"  # in a sweep's folder: what became of the jobs of the last command, a file for each
SWEEP, BEST = "multirun.yaml", "optimization_results.yaml"  # either makes a folder a sweep's
