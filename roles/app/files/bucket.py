"""Keeps copies of backups in a bucket of S3, or of a service that speaks as S3 does.

It takes boto3, Debian's package `python3-boto3`. Key and secret come from where boto3 looks for them: on EC2 from the
instance's own role, so that none is stored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import boto3
    import boto3.exceptions
    import botocore.config
    import botocore.exceptions
except ImportError:  # a host without a bucket
    boto3 = None


class BucketError(Exception):
    """The bucket did not do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Bucket:
    """Where the copies are.

    Attributes:
        name: the bucket's name.
        prefix: what the keys begin with, `nba/prod/`.
        region: the bucket's region; empty for the account's own.
        endpoint: the URL of a service that is not Amazon's; empty for S3.
    """

    name: str
    prefix: str
    region: str
    endpoint: str

    def __str__(self) -> str:
        """Return the URL below which the copies are."""
        return f"s3://{self.name}/{self.prefix}"

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each copy, by the backup's name."""
        with self._client("list") as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix)
            found = [item for page in pages for item in page.get("Contents", [])]
        return {item["Key"].removeprefix(self.prefix): item["Size"] for item in found}

    def put(self, path: Path) -> None:
        """Copy a file into the bucket."""
        with self._client("write") as client:
            client.upload_file(str(path), self.name, self.prefix + path.name)

    def fetch(self, name: str, path: Path) -> None:
        """Fetch a copy to a new file that only this account can read."""
        with (
            os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream,
            self._client("read") as client,
        ):
            client.download_fileobj(self.name, self.prefix + name, stream)

    @contextlib.contextmanager
    def _client(self, verb: str) -> Iterator[Any]:
        """Give boto3's client; say its errors in words."""
        if boto3 is None:
            raise BucketError("copies in S3 take the package python3-boto3: ansible-playbook playbooks/base.yml -l ENV")
        patience = botocore.config.Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 3})
        known = {"region_name": self.region, "endpoint_url": self.endpoint}
        try:
            yield boto3.client("s3", config=patience, **{key: value for key, value in known.items() if value})
        except (
            boto3.exceptions.Boto3Error,
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
        ) as error:
            raise BucketError(
                f"cannot {verb} {self}: {error}\nbackup_bucket in group_vars names it; docs/migrations.md says what "
                "the host's role must be allowed to do there"
            ) from None
