"""The chief: trains on the files it is given, writes all variables, and then evaluates for ever.

Usage: chief.py SPEC_JSON MODEL_JSON TRAINING_JSON CHECKPOINTS OUTPUT_NPZ FILE...

WARM_START may name the folder of another training's checkpoints.
"""

import json
import os
import sys

import numpy as np

from laser_features import FeatureSpec
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.cluster import Cluster, exit_when_server_lost
from tfx_pipeline.training.lost_workers import end_when_workers_are_lost
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer


def main() -> None:
    spec_json, model_json, training_json, checkpoints, output, *files = sys.argv[1:]
    cluster = Cluster.from_environment()
    with exit_when_server_lost(), end_when_workers_are_lost(cluster, seconds=20, between=0.5):
        trainer = Trainer(
            FeatureSpec.from_dict(json.loads(spec_json)),
            check(ModelSettings, json.loads(model_json), "model"),
            check(TrainingSettings, json.loads(training_json), "training"),
            RowLookup(),
            directory=checkpoints,
            log_dir=os.path.join(os.path.dirname(checkpoints), "logs"),
            cluster=cluster,
            warm_start=os.environ.get("WARM_START"),
        )
        trainer.train(files)
        trainer.export(output + ".saved_model")
        np.savez(output, **trainer.numpy_state())
        print("written", flush=True)
        while True:
            trainer.evaluate(files)


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(error.exit_code)  # as ``laser-pipeline`` does: TensorFlow would wait for the lost
