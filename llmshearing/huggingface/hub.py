"""Models of the Hugging Face hub: from `org/name[@revision]` to a directory, and back.

huggingface_hub keeps the files in its cache, in a folder whose name has repository and commit. So a
directory alone tells where it comes from.
"""

import functools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import llmshearing
from llmshearing.checkpoints.manifest import EXPORT_FILE
from llmshearing.errors import UserError
from llmshearing.huggingface import tokenizer_files

log = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>.+))?")
CACHED = re.compile(r".*/models--(?P<repository>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")
# What is downloaded: never code, and weights only when they are read.
SETTINGS = (
    "config.json",
    EXPORT_FILE,
    *tokenizer_files.FILES,
    f"{tokenizer_files.TEMPLATES}/*.jinja",
)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def model_directory(model: str | Path) -> Path:
    """The directory of a model, with its config and tokenizer; a local one has precedence.

    Weights of the hub are downloaded when they are read, see `fetch_weights`.

    Args:
        model: a directory, or a repository of the hub as `org/name` or `org/name@revision`.

    Raises:
        UserError: the hub has no such repository or revision, does not give access, or cannot be
            reached, and its cache has no copy.
    """
    directory, name = Path(model).expanduser(), NAME.fullmatch(str(model))
    if name is None:
        return directory
    if directory.exists():
        _log_once(f"{model}: the directory here, not the repository of that name on the hub")
        return directory
    directory = _download(name["repository"], name["revision"] or "main", SETTINGS)
    _log_once(f"{model}: {repository_of(directory)} of the hub, in {directory}")
    return directory


def repository_of(directory: Path) -> str | None:
    """`org/name@commit` of a directory in the hub's cache; None for any other."""
    found = CACHED.fullmatch(str(directory.absolute()))
    return found and f"{found['repository'].replace('--', '/')}@{found['commit']}"


def fetch_weights(directory: Path) -> None:
    """Download the weights of a model whose directory is in the hub's cache.

    Safetensors are preferred to PyTorch's files.

    Raises:
        UserError: the hub cannot be reached or does not give access.
    """
    repository, _, commit = (repository_of(directory) or "").partition("@")
    cache = directory.absolute().parents[2]
    _download(repository, commit, SAFETENSORS, cache)
    if not any(directory.glob("*.safetensors")):
        _download(repository, commit, PICKLED, cache)


def shipped_config(model: str) -> Path | None:
    """The directory in `yamls/models` with the config of a repository, for plans; None if absent.

    No revision may be asked for, and no directory of that name may be here.
    """
    if Path(model).exists():
        return None
    for file in (Path(llmshearing.__file__).parent / "yamls" / "models").glob("*/config.json"):
        if json.loads(file.read_text(encoding="utf-8")).get("_name_or_path") == model:
            return file.parent
    return None


def check_push(repository: str) -> None:
    """Check that the hub would know who pushes, before an export takes its time.

    Raises:
        UserError: the name is none, there is no token, or the hub does not accept it.
    """
    from huggingface_hub import HfApi, get_token

    name = NAME.fullmatch(repository)
    if name is None or name["revision"]:
        raise UserError(f"--push: found {repository!r}, expected ORG/NAME")
    if get_token() is None:
        raise UserError(
            f"--push: found no token for the hub, expected one that may write {repository}: run "
            "`hf auth login`, or set HF_TOKEN"
        )
    try:
        HfApi().whoami()
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        raise UserError(
            f"--push: {_endpoint()} does not accept the token ({_why(error)})"
        ) from error


def push(directory: Path, repository: str) -> str:
    """Upload an exported directory; a repository that does not exist is made, and is private.

    Returns:
        `org/name@commit`.

    Raises:
        UserError: the hub refuses it or cannot be reached. The directory stays.
    """
    from huggingface_hub import HfApi

    try:
        if not HfApi().repo_exists(repository):
            HfApi().create_repo(repository, private=True)
        made = HfApi().upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload by llmshearing"
        )
        return f"{repository}@{made.oid}"
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        raise UserError(
            f"wrote {directory}, but could not push it to {repository} ({_why(error)}). Push it "
            f"with `hf upload {repository} {directory}`, with a token that may write there"
        ) from error


def _download(
    repository: str, revision: str, files: Sequence[str], cache: Path | None = None
) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    page = f"{_endpoint()}/{repository}"
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(files), cache_dir=cache
            )
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"found {repository}, which is gated: accept its licence at {page}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"found neither a directory {repository} here nor a repository {page}: correct the "
            "name; for a private repository log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"found no revision {revision!r} of {repository}; expected a branch, tag or commit of "
            f"{page}/commits"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"found {repository!r}, expected ORG/NAME ({_why(error)})") from error
    except Exception as error:  # of requests or httpx, by the version of huggingface_hub
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise UserError(
            f"found no directory {repository} here, and cannot get {page} ({_why(error)}), of "
            f"which {cache or constants.HF_HUB_CACHE} has no whole copy: check the network and "
            "HF_HUB_OFFLINE, then run the same command again, which resumes a download"
        ) from error


def _why(error: BaseException) -> str:
    """The first line of what an error of huggingface_hub was raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


@functools.cache
def _log_once(message: str) -> None:
    log.info(message)
