"""Package metadata. Versions are pinned here, those of the current stack in current-stack.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# mosaicml 0.32.1 pins torch < 2.7.1 and streaming 0.13 pins transformers < 5, so without overrides
# these two decide the rest of the environment.
REQUIRED = [
    "mosaicml==0.32.1",
    "mosaicml-cli>=0.7.5,<0.8",  # of mosaicml; earlier ones warn with the websockets they allow
    "mosaicml-streaming==0.13.0",
    "transformers>=4.57,<6",
    "omegaconf>=2.3,<2.5",
    "pydantic>=2.10,<3",
    "sentencepiece>=0.2,<0.3",
    "orjson>=3.9",
    "xxhash>=3.0",
    "tensorboard>=2.15",
    "safetensors>=0.4",
    "scipy>=1.11",
    "matplotlib>=3.8",
    "rich>=13",
    "zstandard>=0.22",
    "pyarrow>=15",
]
# Text from object stores and from the library datasets, which goes with one version of fsspec.
REMOTE = ["datasets>=3", "fsspec[http]", "gcsfs", "s3fs"]
FAST = ["gigatoken>=0.10,<0.11"]  # encodes text some ten times as fast; not on every platform
TEST = ["pytest>=8,<10", "pytest-timeout>=2.3", "hypothesis>=6.100"]
EVAL = ["lm-eval[hf]>=0.4.13,<0.5"]
# Later ones lack `Run.get_url`, which Composer 0.32 asks for; earlier ones want a protobuf that is
# too old for sentencepiece.
WANDB = ["wandb>=0.26,<0.29"]
INTEROP = [*EVAL, "trl>=1.13,<2", "llama-cpp-python>=0.3.36,<0.4"]  # the last one is compiled
DEV = [
    *TEST,
    *FAST,
    *EVAL,
    *WANDB,
    *REMOTE,
    "moto[server]>=5",
    "ruff==0.17.6",
    "pyright==1.1.414",
    "pre-commit>=3.6",
    "yamllint>=1.35",
    "pdoc>=15,<17",
]

PACKAGE = Path(__file__).parent / "llmshearing"
VERSION = re.search(r'__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())[1]

setup(
    name="llmshearing",
    version=VERSION,
    description="Small language models out of large ones: structured pruning, then continued "
    "pre-training with dynamic batch loading",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["llmshearing", "llmshearing.*"]),
    package_data={
        "llmshearing": ["yamls/**/*.yaml", "yamls/**/*.json"],  # a link to the folder yamls
        "llmshearing.tasks": ["suites/*.yaml", "definitions/*.yaml"],
    },
    install_requires=REQUIRED,
    extras_require={
        "fast": FAST,
        "remote": REMOTE,
        "test": TEST,
        "dev": DEV,
        "eval": EVAL,
        "wandb": WANDB,
        "interop": INTEROP,
    },
    entry_points={"console_scripts": ["llmshearing=llmshearing.cli:main"]},
)
