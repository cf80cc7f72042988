"""URLs that try to reach what is not public: the corpus of test_no_way_in.py.

`PORT` stands for the port of a trap on the loopback addresses, `GOOD` for a server that may be asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

# One address at least of every class, and the ends of ranges.
V4 = [
    *("0.0.0.0", "0.0.0.1", "0.255.255.255"),
    *("10.0.0.0", "10.0.0.1", "10.255.255.255"),
    *("100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.0.0.0", "127.1.2.3", "127.255.255.255"),
    "168.63.129.16",
    *("169.254.0.1", "169.254.169.254", "169.254.170.2", "169.254.169.123", "169.254.255.255"),
    *("172.16.0.1", "172.17.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.0.1", "192.168.255.255"),
    *("198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255"),
]
V6 = [
    *("::", "::1", "::2", "fe80::1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254", "fdff::1", "ff02::1", "ff0e::1"),
    *("2001:db8::1", "2001::1", "2001:2::1", "2001:10::1", "2001:20::1", "3fff::1", "100::1", "5f00::1", "4000::1"),
    *("1000::1", "e000::1", "64:ff9b:1::7f00:1"),
]
_INSIDE = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1"]
NAMES = {
    "localhost": "127.0.0.1",
    "LOCALHOST": "127.0.0.1",
    "localhost.": "127.0.0.1",
    "localhost.localdomain": "127.0.0.1",
    "ip6-localhost": "::1",
    "anything.localhost": "127.0.0.1",
    "kubernetes.default.svc": "10.96.0.1",
    "host.docker.internal": "192.168.65.2",
    "metadata.google.internal": "169.254.169.254",
    "metadata": "169.254.169.254",
    "instance-data": "169.254.169.254",
    "rancher-metadata": "169.254.169.250",
    "127.0.0.1.nip.example": "127.0.0.1",
    "7f000001.nip.example": "127.0.0.1",
    "www.10.0.0.1.xip.example": "10.0.0.1",
    "six.example": "::1",
    "mapped.example": "::ffff:127.0.0.1",
    "unique-local.example": "fd00:ec2::254",
    "nat64.example": "64:ff9b::a9fe:a9fe",
    "xn--nxasmq6b.example": "127.0.0.1",
    "bücher.example": "127.0.0.1",
    "a_b.example": "127.0.0.1",
}


def embedded(inner: str) -> list[str]:
    """The IPv6 addresses that carry this IPv4 address."""
    number = int(ipaddress.IPv4Address(inner))
    high, low = f"{number >> 16:x}", f"{number & 0xFFFF:x}"
    turned = number ^ 0xFFFFFFFF
    return [
        f"::{inner}",
        f"::ffff:{inner}",
        f"::ffff:{high}:{low}",
        f"0:0:0:0:0:ffff:{inner}",
        f"::ffff:0:{inner}",
        f"64:ff9b::{inner}",
        f"64:ff9b:1::{high}:{low}",
        f"2002:{high}:{low}::1",
        f"2001:0:4136:e378:8000:63bf:{turned >> 16:x}:{turned & 0xFFFF:x}",
        f"2600:1f18::5efe:{inner}",
        f"2600:1f18:0:0:200:5efe:{high}:{low}",
    ]


def written(inner: str) -> list[str]:
    """Other ways to write an IPv4 address that some reader takes for it."""
    number = int(ipaddress.IPv4Address(inner))
    a, b, c, d = inner.split(".")
    return [
        str(number),
        hex(number),
        oct(number).replace("0o", "0"),
        ".".join(hex(int(part)) for part in (a, b, c, d)),
        ".".join(f"0{int(part):o}" for part in (a, b, c, d)),
        ".".join(f"{int(part):08o}" for part in (a, b, c, d)),
        f"{a}.{b}.{int(c) * 256 + int(d)}",
        f"{a}.{int(b) * 65536 + int(c) * 256 + int(d)}",
        f"{hex(int(a))}.{b}.0{int(c):o}.{d}",
        str(number + (1 << 32)),
        f"{inner}.",
        f"%{ord(inner[0]):02x}{inner[1:]}",
        inner.replace(".", "%2e"),
        inner.replace(".", "。"),  # an ideographic full stop
        "".join(chr(0xFF10 + int(c)) if c.isdigit() else c for c in inner),  # full-width digits
        "".join(chr(0x2460 + int(c) - 1) if c in "123456789" else c for c in inner),  # circled digits
        inner.replace(".", "．"),
        f"{inner}%00.example",
    ]


ADDRESSES = [*V4, *V6, *(address for inner in _INSIDE for address in embedded(inner))]
_ODD = [
    # who is the host?
    "http://GOOD@127.0.0.1:PORT/x.mar",
    "http://127.0.0.1:PORT@GOOD/x.mar",
    "http://GOOD:80@127.0.0.1:PORT/x.mar",
    "http://user:password@127.0.0.1:PORT/x.mar",
    "http://@127.0.0.1:PORT/x.mar",
    "http://GOOD%40127.0.0.1:PORT/x.mar",
    "http://GOOD\\@127.0.0.1:PORT/x.mar",
    "http://127.0.0.1:PORT\\@GOOD/x.mar",
    "http://127.0.0.1:PORT#@GOOD/x.mar",
    "http://127.0.0.1:PORT?@GOOD/x.mar",
    "http://127.0.0.1:PORT;@GOOD/x.mar",
    "http://127.0.0.1:PORT,GOOD/x.mar",
    "http://127.0.0.1%23@GOOD/x.mar",
    "http://127.0.0.1%2523@GOOD/x.mar",
    "http://127.0.0.1 GOOD/x.mar",
    "http://127.0.0.1\t:PORT/x.mar",
    "http://127.0.0.1\r\nHost: x/x.mar",
    "http://127.0.0.1:PORT/x.mar\r\nX: y\r\n\r\nGET /y HTTP/1.1",
    "http://127.0.0.1:PORT/\0x.mar",
    "http://[::1]:PORT/x.mar",
    "http://[::1%25lo]:PORT/x.mar",
    "http://[::1%lo]:PORT/x.mar",
    "http://[fe80::1%251]:PORT/x.mar",
    "http://[0:0:0:0:0:0:0:1]:PORT/x.mar",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:PORT/x.mar",
    "http://[::FFFF:7F00:1]:PORT/x.mar",
    "http://[::ffff:0x7f.0.0.1]:PORT/x.mar",
    "http://[127.0.0.1]:PORT/x.mar",
    "http://[v1.127.0.0.1]:PORT/x.mar",
    "http://[::1/x.mar",
    "http://::1:PORT/x.mar",
    "http:///127.0.0.1:PORT/x.mar",
    "http:////127.0.0.1:PORT/x.mar",
    "http://\\127.0.0.1:PORT/x.mar",
    "http:\\\\127.0.0.1:PORT\\x.mar",
    "http:/127.0.0.1:PORT/x.mar",
    "http:127.0.0.1:PORT/x.mar",
    "//127.0.0.1:PORT/x.mar",
    "http://./x.mar",
    "http://*/x.mar",
    "http:// /x.mar",
    "http://",
    "https://",
    # ports
    "http://127.0.0.1:0/x.mar",
    "http://127.0.0.1:/x.mar",
    "http://127.0.0.1:22/x.mar",
    "http://127.0.0.1:65536/x.mar",
    "http://127.0.0.1:-1/x.mar",
    "http://127.0.0.1:0xPORT/x.mar",
    "http://127.0.0.1:00PORT/x.mar",
    "http://127.0.0.1:PORT:80/x.mar",
    # paths
    "http://GOOD/%2e%2e/x.mar",
    "http://GOOD/.%2E/x.mar",
    "http://GOOD/a/../x.mar",
    "http://127.0.0.1:PORT/..%2f/x.mar",
    # schemes
    "HTTP://127.0.0.1:PORT/x.mar",
    "hTTps://127.0.0.1:PORT/x.mar",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/x.mar",
    "unix:///var/run/docker.sock",
    "unix:/var/run/docker.sock:http://GOOD/x.mar",
    "file:///etc/passwd",
    "file:///proc/self/environ",
    "file://127.0.0.1/etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "file://127.0.0.1:PORT/etc/passwd",
    "ftp://127.0.0.1:PORT/x.mar",
    "ftps://127.0.0.1:PORT/x.mar",
    "sftp://127.0.0.1:PORT/x.mar",
    "tftp://127.0.0.1:PORT/x.mar",
    "gopher://127.0.0.1:PORT/_GET%20/x.mar",
    "dict://127.0.0.1:PORT/info",
    "ldap://127.0.0.1:PORT/x",
    "ws://127.0.0.1:PORT/x.mar",
    "wss://127.0.0.1:PORT/x.mar",
    "jar:http://127.0.0.1:PORT/x.mar!/",
    "netdoc:///etc/passwd",
    "php://filter/resource=/etc/passwd",
    "data:application/zip;base64,UEsDBA==",
    "url:http://127.0.0.1:PORT/x.mar",
    "view-source:http://127.0.0.1:PORT/x.mar",
    "zhttp://127.0.0.1:PORT/x.mar",
    " http://127.0.0.1:PORT/x.mar",
    "\thttp://127.0.0.1:PORT/x.mar",
    "http://127.0.0.1:PORT/" + "x" * 9000,
    "http://" + "a." * 400 + "example:PORT/x.mar",
    "http://" + "a" * 70 + ".example:PORT/x.mar",
]


def corpus(port: int, good: str) -> list[str]:
    """Every URL once, in order."""
    return list(dict.fromkeys(url.replace("PORT", str(port)).replace("GOOD", good) for url in _all()))


def _all() -> Iterator[str]:
    for address in V4:
        yield f"http://{address}:PORT/x.mar"
        yield f"https://{address}/x.mar"
    for address in V6:
        yield f"http://[{address}]:PORT/x.mar"
    for inner in _INSIDE:
        for address in embedded(inner):
            yield f"http://[{address}]:PORT/x.mar"
        for host in written(inner):
            yield f"http://{host}:PORT/x.mar"
    for name in NAMES:
        yield f"http://{name}:PORT/x.mar"
    yield from _ODD
