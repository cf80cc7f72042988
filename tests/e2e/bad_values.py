"""Values that make no sense, as they stand in a query, a path or a JSON body, and how to put them there."""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

# For queries and paths.  None of these is a broken escape.
_WORDS = """
abc true TRUE null [] %7B%7D [1] NaN Infinity -Infinity 0x10 1e3 1.5 2.0
0 -0 -1 -2 -7 -100 -2147483648 -2147483649 2147483648 %2B3 +3 %201 1%20 1_000 %D9%A3 %EF%BC%91 %C2%B2 %E2%88%921
%00 %00%00 a%00b %0D%0AX-Injected:%201 %0A %7F %1B[31m %E2%80%A8 %EF%BB%BF %E6%A8%A1%E5%9E%8B %F0%9F%98%80 %CC%81
%FF%FE %C0%AF %ED%A0%80 %F4%90%80%80 %2531 %2525 ' %22 %5C '+OR+1=1+-- %27;DROP ${jndi:x} %3Cscript%3E a=b=c a:b ~ * a|b
`id` .. ../../etc/passwd %2e%2e%2fetc%2fpasswd /etc/passwd file:///etc/passwd http://[/x s3://b/k
"""
_LONG = ("1" + "0" * 400, "-" + "9" * 400, "0" * 900 + "1", "a" * 300, "a" * 3000, "%F0%9F%98%80" * 250)
VALUES = ["", *_WORDS.split(), *_LONG]
BROKEN_ESCAPES = ["%", "%2", "%z", "%zz", "%u0041", "%%", "a%", "%2G", "%-1", "%\xc3\xa9"]
RAW_BYTES = [b"\xff", b"\xc3\xa9", b"\x00", b"\x01", b"\x7f", b"a b", b"\t", b"\x1b"]
NUMBERS = ["-2147483648", "-7", "-1", "0", "2147483647", "2147483648", "1" + "0" * 400, "1.5", "abc"]

# For the value of a member of a JSON body; some are only nearly JSON.
_JSON_WORDS = r"""
null true false [] {} [1] {"a":1} [["a"]] 1.5 2.0 -0.0 1e3 1e400 -1e400 1e-400 NaN Infinity -Infinity
0 -1 -7 2147483648 -2147483649 "" "abc" "1.5" "2.0" "+3" "true" "模型" "\x41" 'single' bare 1, 0x10
"\ud800" "\udc00\ud800" "a\ud83d" "\ud83d\ude00" "\u0000" "a\u0000b" "\r\nX:1"
"""
_JSON_NUMBERS = ["1" + "0" * 400, "1" + "0" * 5000, '"' + "9" * 400 + '"', '"' + "0" * 100_000 + 'x"']
_JSON_REST = ['" "', '"\t"', '"' + "a" * 100_000 + '"', "[" * 500 + "]" * 500, "[" * 100_000]
JSON_VALUES = [*_JSON_WORDS.split(), *_JSON_NUMBERS, *_JSON_REST]

# Bodies that are no object of parameters.
_SMALL_BODIES = rb"""
null [] {} "" 1 true { } {}{} {}, {,} {:} {"a"} {"a":} {"a":1 {"url" {"url":" {'url':'x {"url":"x"}x url=echo.mar <a/>
"""
_BROKEN_BYTES = [
    b"\x1f\x8b\x08",
    b"\xff\xfe{}",
    b"\xff" * 1000,
    b"\xef\xbb\xbf{",
    b'{"\xff": "\xfe"}',
    b"\0",
    b" ",
    b"",
]
_DEEP = [b"[" * 100_000, b"{" * 100_000, b'{"a":' * 100_000, b'{"a":[' * 50_000, b"[" * 50_000 + b"]" * 50_000]
_MEGABYTES = [
    *(b"a" * 2**20, b" " * 2**20, b"9" * 2**20, b"'" * 2**20, b"{" + b" " * 2**20, b'{"url": ' + b"9" * 2**20),
    *(b'{"a": "' + b"a" * 2**20, b'{"a": "' + b"\\" * 2**20, b"{" + b"a:b," * 2**18, b"{" + b'"a":1,' * 2**17 + b"}"),
    b"{" + b",".join(b'"k%d":%d' % (i, i) for i in range(50_000)) + b"}",
]
NO_PARAMETERS = [*_SMALL_BODIES.split(), '{"url": "x"}'.encode("utf-16"), *_BROKEN_BYTES, *_DEEP, *_MEGABYTES]

# Bodies of predictions, sent with several content types.
_SMALL_INPUTS = rb"""{ [ nul "\ud800" NaN 1e400 {} {"\ud800":1}"""
INPUTS = [*_SMALL_INPUTS.split(), *_BROKEN_BYTES, b"9" * 5000, b"\xed\xa0\x80", b"[" * 100_000, b'{"a":' * 50_000]


def in_query(value: str) -> str:
    """A value of VALUES for a query: what would end it is escaped, its own escapes stay."""
    return quote(value, safe="%+/:=[]{}$'`*|~,!@()\\\"^")


def in_path(value: str) -> str:
    return quote(value, safe="%+:=;[]{}$'`*|~,!@()/")


def as_read(value: str) -> str:
    """The text that such a value in a query stands for."""
    return unquote_to_bytes(in_query(value).replace("+", " ")).decode("utf-8", "replace")


def as_read_in_path(value: str) -> str:
    return unquote_to_bytes(in_path(value)).decode("utf-8", "replace")
