"""Where a pipeline definition runs: on this machine, or compiled for Kubeflow."""
