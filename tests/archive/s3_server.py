"""A real S3 server process (moto) that checks every signature and every right, with what the tests need in it."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3

BUCKET, KMS_KEY, FAR_BUCKET = "models", "kms/noop é+1.mar", "far-models"
_EVERYTHING = json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}})
_TRUST = json.dumps(
    {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}}
)
# Not what the machine itself is set up with.
_NOTHING = {
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}

Environ = dict[str, str]


@dataclass(frozen=True)
class S3Server:
    """`user` and `role` are environments: with long-lived keys, and with those of a role for an hour."""

    url: str
    user: Environ
    role: Environ


@contextmanager
def running(archive: bytes) -> Iterator[S3Server]:
    """`archive` is a KMS-encrypted object `KMS_KEY` in `BUCKET`, and the plain one `big.mar` beside it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        while b"Running on" not in (line := process.stdout.readline()):
            assert line, "the server ended"
        yield _filled(f"http://127.0.0.1:{port}", archive)
    finally:
        process.kill()
        process.communicate()


def _filled(url: str, archive: bytes) -> S3Server:
    session = boto3.session.Session("setup", "setup", region_name="us-east-1")

    def client(name: str) -> Any:
        return session.client(name, endpoint_url=url)

    iam, s3 = client("iam"), client("s3")
    key_id = client("kms").create_key()["KeyMetadata"]["KeyId"]
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=KMS_KEY, Body=archive, ServerSideEncryption="aws:kms", SSEKMSKeyId=key_id)
    assert s3.head_object(Bucket=BUCKET, Key=KMS_KEY)["ServerSideEncryption"] == "aws:kms"
    s3.put_object(Bucket=BUCKET, Key="big.mar", Body=io.BytesIO(archive))
    iam.create_user(UserName="server")
    iam.put_user_policy(UserName="server", PolicyName="all", PolicyDocument=_EVERYTHING)
    key = iam.create_access_key(UserName="server")["AccessKey"]
    role = iam.create_role(RoleName="server", AssumeRolePolicyDocument=_TRUST)["Role"]
    iam.put_role_policy(RoleName="server", PolicyName="all", PolicyDocument=_EVERYTHING)
    of_role = client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="test")["Credentials"]
    enforce = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(enforce).close()
    user = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    with_token = {
        "AWS_ACCESS_KEY_ID": of_role["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": of_role["SecretAccessKey"],
        "AWS_SESSION_TOKEN": of_role["SessionToken"],
    }
    return S3Server(url, _NOTHING | user, _NOTHING | with_token)


def status_unsigned(url: str) -> int:
    try:
        return urllib.request.urlopen(url).status
    except urllib.error.HTTPError as error:
        return error.code
