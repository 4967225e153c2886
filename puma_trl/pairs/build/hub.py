"""A finished build → a dataset of the Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from ...errors import HubError
from ...record.hub_calls import LOGIN_SECONDS, describe_failure, push_within, within


def check_login() -> None:
    """
    Makes sure, before anything is built, that somebody is logged in to the Hub.

    Raises:
        HubError: if nobody is, the token is not valid, or the Hub cannot be reached.
    """
    api = HfApi()
    instead = "Or leave `--push_to_hub` out: the same command with it pushes the build when it is over."
    try:
        within(LOGIN_SECONDS, api.whoami)
    except LocalTokenNotFoundError as error:
        raise HubError(
            f"`--push_to_hub`, but nobody is logged in to the Hub. Run `hf auth login`, or set HF_TOKEN. {instead}"
        ) from error
    except Exception as error:  # of the connection, the server or the client
        failure = describe_failure(api, error)
        raise HubError(f"`--push_to_hub`, but the Hub cannot be used {failure}. {instead}") from error


def push(output: Path, repo_id: str) -> str:
    """
    Uploads a finished parquet build as a dataset of the Hub; returns its id.

    Raises:
        HubError: if that fails.
    """
    api = HfApi()

    def upload() -> str:
        full_id = api.create_repo(repo_id, repo_type="dataset", exist_ok=True).repo_id
        api.upload_folder(
            folder_path=output,
            repo_id=full_id,
            repo_type="dataset",
            allow_patterns="data/*.parquet",
            delete_patterns="data/*.parquet",  # of a build before, which may have had more files
        )
        return full_id

    try:
        return push_within(sum(path.stat().st_size for path in output.glob("data/*.parquet")), upload)
    except Exception as error:  # of the connection, the server or the client: the build is safe on the disk
        failure = describe_failure(api, error)
        raise HubError(
            f"{output} is finished, but could not be pushed to the Hub {failure}. The same command pushes it again."
        ) from error
