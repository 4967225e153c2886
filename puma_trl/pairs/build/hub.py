"""A finished build → a data set of the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from ...errors import DataError


def check_login() -> None:
    """
    Makes sure, before anything is built, that somebody is logged in to the Hub.

    Raises:
        DataError: if nobody is, the token is not valid, or the Hub cannot be reached.
    """
    api = HfApi()
    instead = "Or leave `--push_to_hub` out: the same command with it pushes the build when it is over."
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise DataError(
            f"`--push_to_hub`, but nobody is logged in to the Hub. Run `hf auth login`, or set HF_TOKEN. {instead}"
        ) from error
    except Exception as error:  # of the connection, the server or the client
        raise DataError(
            f"`--push_to_hub`, but the Hub at {api.endpoint} cannot be used: {error}. {instead}"
        ) from error


def push(output: Path, repo_id: str) -> str:
    """
    Uploads a finished parquet build as a data set of the Hub; returns its id.

    Raises:
        DataError: if that fails.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, repo_type="dataset", exist_ok=True).repo_id
        api.upload_folder(
            folder_path=output,
            repo_id=repo_id,
            repo_type="dataset",
            allow_patterns="data/*.parquet",
            delete_patterns="data/*.parquet",  # of a build before, which may have had more files
        )
    except Exception as error:  # of the connection, the server or the client: the build is safe on the disk
        raise DataError(
            f"{output} is finished, but could not be pushed to the Hub at {api.endpoint}: {error}. The same command "
            "pushes it again."
        ) from error
    return repo_id
