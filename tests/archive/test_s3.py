"""Objects of a real S3 server process that demands signatures: as https and s3:// URLs, with keys and with roles."""

import os
from urllib.parse import quote

import pytest

from tests.archive.origin import redirect, reply, serving
from tests.archive.s3_server import BUCKET, KMS_KEY, running, status_unsigned
from tests.archive.test_downloads import Registrations, make_keep, mar
from tserve.archive.fetch.policy import AddressPolicy
from tserve.errors import DownloadFailed, ModelNotFound

ARCHIVE = mar(filling=bytes(100_000))
OPEN = AddressPolicy(allow_all=True)
URL = f"/{BUCKET}/{quote(KMS_KEY)}"


@pytest.fixture(scope="module")
def s3():
    with running(ARCHIVE) as server:
        yield server


@pytest.fixture
def environ(monkeypatch):
    """Give the SDK an environment."""

    def use(variables):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
async def registry(state, store, s3, environ):
    environ(s3.user)
    keep = make_keep(state, store, addresses=OPEN, s3_endpoint=s3.url)
    await keep.prepare(())
    return Registrations(keep)


async def reason(registry, url, **how):
    with pytest.raises((DownloadFailed, ModelNotFound)) as caught:
        await registry.register(url, **how)
    return caught.value.cause["reason"], caught.value.cause["detail"]


def test_the_server_demands_a_signature(s3):
    assert status_unsigned(s3.url + URL) == 403


@pytest.mark.parametrize("who", ["user", "role"])
async def test_a_signed_url(registry, s3, environ, store, who):
    environ(getattr(s3, who))
    await registry.register(s3.url + URL, signed=True)
    assert (store / quote("noop é+1.mar")).read_bytes() == ARCHIVE


@pytest.mark.parametrize("who", ["user", "role"])
async def test_an_object(registry, s3, environ, store, who):
    environ(getattr(s3, who))
    await registry.register(f"s3://{BUCKET}/{KMS_KEY}")
    assert (store / "noop é+1.mar").read_bytes() == ARCHIVE


async def test_the_scheme_in_any_case(registry, store):
    await registry.register(f"S3://{BUCKET}/big.mar")
    assert (store / "big.mar").read_bytes() == ARCHIVE


async def test_unsigned(registry, s3):
    assert await reason(registry, s3.url + URL) == ("status", "status 403")


async def test_credentials_of_a_role_without_its_token(registry, s3, environ):
    environ({name: value for name, value in s3.role.items() if name != "AWS_SESSION_TOKEN"})
    assert await reason(registry, s3.url + URL, signed=True) == ("status", "status 403")
    assert await reason(registry, f"s3://{BUCKET}/{KMS_KEY}") == ("status", "status 403")


async def test_a_wrong_key(registry, s3, environ):
    environ(s3.user | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert await reason(registry, s3.url + URL, signed=True) == ("status", "status 403")


@pytest.mark.parametrize("url", [f"s3://{BUCKET}/{KMS_KEY}", "http://127.0.0.1:9/x.mar"])
async def test_no_credentials(registry, s3, environ, url):
    environ({name: value for name, value in s3.user.items() if "KEY" not in name})
    assert (await reason(registry, url, signed=True))[0] == "no_credentials"


@pytest.mark.parametrize("url", [f"s3://{BUCKET}/nosuch.mar", "s3://no-such-bucket/x.mar"])
async def test_nothing_there(registry, url):
    assert await reason(registry, url) == ("status", "status 404")


@pytest.mark.parametrize("url", ["s3:///x.mar", "s3://UPPER_case!/x.mar", "s3://b\x00/x.mar", "s3://[::1]:80/x.mar"])
async def test_no_bucket(registry, url):
    assert (await reason(registry, url))[0] in ("s3_error", "status", "not_in_model_store")


async def test_credentials_of_a_profile(registry, s3, environ, tmp_path):
    """The SDK's own chain, and not variables alone."""
    profile = tmp_path / "credentials"
    lines = [f"{name.lower()} = {value}" for name, value in s3.user.items() if "KEY" in name]
    profile.write_text("\n".join(["[serving]", *lines]))
    environ({"AWS_SHARED_CREDENTIALS_FILE": str(profile), "AWS_PROFILE": "serving", "AWS_DEFAULT_REGION": "us-east-1"})
    await registry.register(f"s3://{BUCKET}/big.mar")


# -- what must stay with whom


@pytest.fixture
async def origin(registry):
    async with serving() as made:
        yield made


async def test_what_is_sent_for_a_signed_url(registry, origin, s3, environ):
    """As recorded, and the token of a role besides."""
    environ(s3.role)
    origin.pages["/b/x.mar"] = reply(200, ARCHIVE)
    await registry.register(origin.url("/b/x.mar?versionId=1"), signed=True)
    (asked,) = origin.asked
    assert asked.headers["x-amz-security-token"] == s3.role["AWS_SESSION_TOKEN"]
    assert asked.headers["x-amz-content-sha256"].startswith("e3b0c44298fc1c14")
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token," in asked.headers["authorization"]
    assert "/us-east-1/s3/aws4_request" in asked.headers["authorization"]


async def test_a_redirect_to_somebody_else_gets_no_signature(registry, origin):
    async with serving() as other:
        origin.pages |= {"/x.mar": redirect("/y.mar"), "/y.mar": redirect(other.url("/z.mar"))}
        await reason(registry, origin.url("/x.mar"), signed=True)
        assert ["authorization" in asked.headers for asked in origin.asked] == [True, True]
        assert [name for name in other.asked[0].headers if name.startswith(("x-amz", "authorization"))] == []


async def test_a_bucket_in_another_region(state, store, origin, environ, s3):
    """S3 says which, and the request is signed anew for it; to go anywhere else it cannot make us."""
    keep = make_keep(state, store, addresses=OPEN, s3_endpoint=origin.url(""))
    await keep.prepare(())

    async def page(asked, stream):
        there = "/eu-north-1/s3/" in asked.headers["authorization"]
        headers = (("x-amz-bucket-region", "eu-north-1"), ("Location", "http://127.0.0.1:9/"))
        await stream.send_all(reply(200, ARCHIVE) if there else reply(301, b"", *headers))

    origin.pages["/far/x.mar"] = page
    await Registrations(keep).register("s3://far/x.mar")
    assert len(origin.asked) == 2
    origin.pages["/far/y.mar"] = redirect("http://127.0.0.1:9/")
    assert (await reason(Registrations(keep), "s3://far/y.mar"))[0] == "bad_redirect"


async def test_the_endpoint_obeys_the_policy(state, store, s3, environ):
    """It is an address like any other."""
    environ(s3.user)
    keep = make_keep(state, store, s3_endpoint=s3.url)
    await keep.prepare(())
    assert (await reason(Registrations(keep), f"s3://{BUCKET}/big.mar"))[0] == "address_not_allowed"
    environ(s3.user | {"AWS_ENDPOINT_URL_S3": "http://169.254.169.254"})
    keep = make_keep(state, store)
    assert (await reason(Registrations(keep), f"s3://{BUCKET}/big.mar"))[0] == "address_not_allowed"
