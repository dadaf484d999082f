"""The chief of a cluster that trains from feature hosts; writes all variables.

Usage: chief.py JOB_JSON OUTPUT_NPZ
"""

import json
import sys
from pathlib import Path

import numpy as np

from laser_features import FeatureSpec
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.cluster import Cluster, exit_when_server_lost
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer


def main(job: str, output: str) -> None:
    given = json.loads(Path(job).read_text())
    spec = FeatureSpec.from_dict(given["spec"])
    settings = check(TrainingSettings, given["training"], "training")
    hosts = FeatureHosts(settings.feature_hosts, spec, given["negative_rate"])
    lookup = RowLookup(
        {name: np.array(ids) for name, ids in given["vocabularies"].items()},
        {name: np.array(limits, np.float32) for name, limits in given["boundaries"].items()},
    )
    with exit_when_server_lost():
        trainer = Trainer(
            spec,
            check(ModelSettings, given["model"], "model"),
            settings,
            lookup,
            log_dir=f"{output}.logs",
            cluster=Cluster.from_environment(),
            feature_hosts=hosts,
            report=lambda line: print(line, flush=True),
        )
        trainer.train(hosts.shards("train"))
        found = trainer.evaluate(hosts.shards("eval"))
        step = np.array(trainer.state.step.numpy())
        np.savez(
            output,
            **trainer.numpy_state(),
            step=step,
            eval_histogram=found.histogram,
            eval_loss=found.loss_sum,
        )
        print("written", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
