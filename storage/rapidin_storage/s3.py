"""What is specific to S3: options, retries, and the meaning of its errors."""

from functools import cache
from typing import Any

from rapidin_storage.errors import AccessError, NoBucketError

_ATTEMPTS = 4

_REFUSED = {
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_NO_CONNECTION = {"EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError"}
_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the credentials file",
    "config-file": "the AWS config file",
    "iam-role": "the instance's role",
    "container-role": "the container's role",
}


def filesystem_options(
    endpoint_url: str = "", profile: str = "", region: str = "", timeout: float = 60
) -> dict[str, Any]:
    """Return the options of `s3fs.S3FileSystem`. Credentials come from the AWS chain only."""
    options: dict[str, Any] = {
        # A listing that is remembered hides the commits of others.
        "use_listings_cache": False,
        "config_kwargs": {
            # An object's name is its SHA-256, and a commit has one inside: hashing every body
            # once more for the signature took a tenth of a push's time.
            "s3": {"payload_signing_enabled": False},
            # Jittered exponential backoff on resets, 5xx and throttling.
            "retries": {"mode": "standard", "total_max_attempts": _ATTEMPTS},
            "max_pool_connections": 64,
            "connect_timeout": min(10, timeout),
            "read_timeout": timeout,
            # Every object is checked against its SHA-256 anyway, and services other than
            # AWS's often refuse the check sums that botocore would add.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
    if endpoint_url:
        options["endpoint_url"] = endpoint_url
    if profile:
        options["profile"] = profile
    if region:
        options["client_kwargs"] = {"region_name": region}
    return options


@cache
def transport_errors() -> tuple[type[Exception], ...]:
    """The errors from below s3fs when S3 does not answer at all."""
    try:
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
    except ImportError:  # a store elsewhere, in an environment without s3fs
        return ()
    return (BotoCoreError, ClientError, TimeoutError)


def cut_short(error: BaseException) -> bool:
    """Whether a reply may have ended within its body: botocore does not retry that."""
    return isinstance(error, transport_errors()) and type(error).__name__ not in _NO_CONNECTION


def code(error: BaseException) -> str:
    """Return the S3 error code behind an exception of s3fs, or ''."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def refusal(error: BaseException, place: str, options: dict[str, Any]) -> AccessError | None:
    """Return the error for a refusal that trying again will not fix, or None."""
    if code(error) in ("NoSuchBucket", "InvalidBucketName"):
        where = options.get("endpoint_url") or "AWS"
        return NoBucketError(f"cannot find the bucket of {place} at {where}")
    sentence = _refusal(error, place, options)
    return AccessError(sentence) if sentence else None


def _refusal(error: BaseException, place: str, options: dict[str, Any]) -> str:
    name = type(error).__name__
    if name == "ProfileNotFound":
        return f"no credentials for {place}: {error}"
    if "Credential" in name or name in ("TokenRetrievalError", "UnauthorizedSSOTokenError"):
        return f"no credentials for {place}: {credentials_source(options)}"
    if code(error) in _REFUSED or isinstance(error, PermissionError):
        reason = " ".join(str(error).split()) or "access denied"
        return f"{place} refused the credentials from {credentials_source(options)}: {reason}"
    return ""


def unreachable(error: BaseException, place: str, options: dict[str, Any]) -> str:
    """Return the message for a service that cannot be connected to, or ''."""
    if type(error).__name__ in _NO_CONNECTION:
        return f"cannot reach {place}: no connection to {options.get('endpoint_url') or 'AWS'}"
    return ""


def credentials_source(options: dict[str, Any]) -> str:
    """Return which source of the AWS chain gives the credentials, never what they are."""
    import botocore.session
    from botocore.exceptions import BotoCoreError

    profile = options.get("profile") or None
    try:
        found = botocore.session.Session(profile=profile).get_credentials()
    except BotoCoreError as error:
        return str(error)
    if found is None:
        return "none in the environment, the AWS files or an instance's role"
    source = _SOURCES.get(found.method, found.method)
    return f"{source}, profile {profile!r}" if profile else source
