"""Object storage (S3, Google, Azure) by obstore, with the settings in the environment by which GDAL reads there."""

from __future__ import annotations

import configparser
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .errors import MissingDependencyError, RequestError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
"""URL schemes of the storage that is known: ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key``."""

_YES = ("YES", "TRUE", "ON", "1")


def open_store(url: str, *, timeout_s: float = 60, retries: int = 10) -> tuple[ObjectStore, str]:
    """The bucket or container that a URL names, and the key in it, as written in the URL. No request is made.

    timeout_s : seconds after which one request is given up; with its repetitions it takes no more than twice that.
    retries : how often a request is repeated that failed by the network or the server.
    Obstore reads what it knows of the environment by itself; what GDAL alone knows is translated (`settings`).
    Raises MissingDependencyError without obstore, RequestError for another URL or settings that name no place.
    """
    parts = urlsplit(url)
    scheme, bucket, key = parts.scheme.lower(), parts.netloc, parts.path.lstrip("/")
    if scheme not in SCHEMES or not bucket:
        raise RequestError(f"{url} names no place in object storage; s3://, gs:// or az://BUCKET/KEY is needed.")
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise MissingDependencyError(
            f"{url} needs one more library: pip install 'geodl_dask[cloud]' ({error})."
        ) from error
    makers: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    limit = timedelta(seconds=timeout_s)
    found = settings(scheme)
    client = {"timeout": limit, "connect_timeout": limit, "allow_http": _is_plain(found)}
    again = {"max_retries": retries, "retry_timeout": limit}
    try:
        return makers[scheme](bucket, client_options=client, retry_config=again, **found), key
    except (BaseError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RequestError(
            f"{url} cannot be reached with the storage's settings in the environment: {reason}. "
            "Set those by which GDAL reads there (for S3 the AWS_* variables)."
        ) from error


def settings(scheme: str) -> dict[str, str | bool]:
    """Obstore's settings for what the environment says in GDAL's words alone, by obstore's names."""
    if scheme == "s3":
        return _of_s3()
    if scheme == "gs":
        return {"skip_signature": True} if _says_yes("GS_NO_SIGN_REQUEST") else {}
    named = {"account_name": os.environ.get("AZURE_STORAGE_ACCOUNT", ""), **_of_connection_string()}
    return {
        **{name: value for name, value in named.items() if value},
        **({"skip_signature": True} if _says_yes("AZURE_NO_SIGN_REQUEST") else {}),
    }


def _of_s3() -> dict[str, str | bool]:
    """Endpoint, anonymity, and what a file of the user's says; addresses always name the bucket in the path."""
    found: dict[str, str | bool] = {}
    if endpoint := os.environ.get("AWS_S3_ENDPOINT"):
        protocol = "http" if os.environ.get("AWS_HTTPS", "YES").upper() not in _YES else "https"
        found["endpoint"] = endpoint if "://" in endpoint else f"{protocol}://{endpoint}"
    if _says_yes("AWS_NO_SIGN_REQUEST"):
        return {**found, "skip_signature": True}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return found
    return {**_of_profile(), **found}


def _of_profile() -> dict[str, str | bool]:
    """Keys and region of the user's profile in ``~/.aws``, which GDAL reads and obstore does not."""
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    names = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]
    places = (
        ("AWS_CONFIG_FILE", "config", profile if profile == "default" else f"profile {profile}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", profile),
    )
    found: dict[str, str] = {}
    for variable, file, section in places:
        parser = configparser.ConfigParser(interpolation=None)  # a key may hold %
        try:
            parser.read(os.environ.get(variable) or Path("~/.aws", file).expanduser(), encoding="utf-8")
            found |= dict(parser[section])
        except (configparser.Error, OSError, ValueError, KeyError, RuntimeError):
            continue  # no such file or profile, or none that can be read
    keys = {name.removeprefix("aws_"): found[name] for name in names if found.get(name)}
    has_region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return {**keys, **({"region": found["region"]} if found.get("region") and not has_region else {})}


def _of_connection_string() -> dict[str, str]:
    """Account, key and address of AZURE_STORAGE_CONNECTION_STRING, the first that GDAL looks at."""
    text = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    said = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {"account_name": "AccountName", "account_key": "AccountKey", "endpoint": "BlobEndpoint"}
    return {name: said[key] for name, key in names.items() if said.get(key)}


def _is_plain(found: dict[str, str | bool]) -> bool:
    """Whether the user's own endpoint is one of http, which obstore refuses unless told."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
    given = (found.get("endpoint"), *(os.environ.get(name) for name in names))
    return any(str(each).startswith("http://") for each in given if each)


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _YES
