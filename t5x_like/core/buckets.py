"""How TensorStore reaches a bucket: the endpoint, region and keys that the usual environment names.

No package is needed beside TensorStore, which is imported when a bucket is opened. Must not know what is read there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DRIVERS = {"gs": "gcs", "s3": "s3"}
RETRIES = {"max_retries": 8, "initial_delay": "250ms", "max_delay": "16s"}  # about 45 s: a bucket's usual hiccup


def known(scheme: str) -> str:
    """What the environment says of a kind of storage, without secrets."""
    if scheme == "gs":
        endpoint = os.environ.get("STORAGE_EMULATOR_HOST") or "Google"
        return f"credentials of {endpoint}: gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"
    kind, endpoint = _s3_credentials()["type"], _s3_endpoint() or "Amazon"
    return (f"the environment: endpoint {endpoint}, credentials {kind} (AWS_ENDPOINT_URL_S3, AWS_REGION, "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE)")  # fmt: skip


def open_store(spec: dict[str, Any]) -> Any:
    """The key-value store of a ``spec_of``. Raises ValueError where TensorStore refuses it."""
    # A server that takes a request and never answers would hold it for ever.
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "10")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "30")
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    if spec["driver"] == "gcs" and (host := os.environ.get("STORAGE_EMULATOR_HOST")):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host if "://" in host else f"http://{host}")
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
    import tensorstore as ts

    return ts.KvStore.open(spec).result()


def spec_of(scheme: str, bucket: str, path: str) -> dict[str, Any]:
    """JSON of a folder of a bucket, as TensorStore has it."""
    driver = DRIVERS[scheme]
    spec = {"driver": driver, "bucket": bucket, "path": path, f"{driver}_request_retries": RETRIES}
    if scheme == "s3":
        spec["aws_credentials"] = _s3_credentials()
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if endpoint := _s3_endpoint():
            spec["endpoint"] = endpoint
            spec["aws_region"] = region or "us-east-1"  # Amazon alone can be asked for a bucket's region
        elif region:
            spec["aws_region"] = region
    return spec


def _s3_endpoint() -> str:
    return (os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "").rstrip("/")


def _s3_credentials() -> dict[str, str]:
    """Where TensorStore finds the keys. Its own chain prints a line for each place that has none, so only a place that
    has some is named; without any the bucket is read as anyone may."""
    environment: Mapping[str, str] = os.environ
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return {"type": "environment"}
    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return {"type": "default"}
    if any(environment.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL")):
        return {"type": "ecs"}
    profile = environment.get("AWS_PROFILE") or "default"
    files = {
        "config_file": environment.get("AWS_CONFIG_FILE") or os.path.expanduser("~/.aws/config"),
        "credentials_file": environment.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials"),
    }
    found = {name: path if os.path.isfile(path) else os.devnull for name, path in files.items()}
    if set(found.values()) != {os.devnull}:
        texts = [Path(path).read_text(errors="replace") for path in found.values()]
        special = any(word in text for text in texts for word in ("credential_process", "sso_"))
        return {"type": "default", "profile": profile} if special else {"type": "profile", "profile": profile, **found}
    return {"type": "imds" if _on_ec2() else "anonymous"}


def _on_ec2() -> bool:
    """Whether this machine says that it is one of Amazon's, whose metadata service may have keys."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    with contextlib.suppress(OSError):
        return "Amazon" in Path("/sys/class/dmi/id/sys_vendor").read_text()
    return False
