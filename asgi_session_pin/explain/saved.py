"""Saved requests and answers: a curl line, an entry of a HAR file, or HTTP as it is on the wire."""

import base64
import json
import re
import shlex
import sys
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

MAX_FILE_BYTES = 67_108_864

Headers = list[tuple[bytes, bytes]]

_request_line = re.compile(rb"([A-Z]+) (\S+)(?: HTTP/[\d.]+)?\r?\n")
_head_end = re.compile(rb"(?:\A|\r?\n)\r?\n")
_status_line = re.compile(rb"HTTP/[\d.]+ (\d{3})[^\n]*\n")
_DATA = {"-d", "--data", "--data-raw", "--data-binary", "--data-ascii", "--json"}
_WITH_VALUE = _DATA.union(
    [
        "-X",
        "--request",
        "-H",
        "--header",
        "-u",
        "--user",
        "-A",
        "--user-agent",
        "-b",
        "--cookie",
        "--url",
        "-e",
        "--referer",
        "-o",
        "--output",
        "-m",
        "--max-time",
    ],
    [
        "--connect-timeout",
        "-x",
        "--proxy",
        "--cacert",
        "-w",
        "--write-out",
        "--retry",
        "-E",
        "--cert",
        "--key",
        "--resolve",
    ],
)


class SavedRequest(NamedTuple):
    """A request: `path` without the query, as the middleware gets it."""

    method: str
    path: str
    headers: Headers
    body: bytes


class SavedAnswer(NamedTuple):
    """What was answered."""

    status: int
    headers: Headers
    body: bytes


def read_file(path: str) -> bytes:
    """Return what a file holds, `-` the standard input. Raises ValueError if it can't be read, or is too large."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return content


def read_request(content: bytes) -> tuple[SavedRequest, SavedAnswer | None]:
    """Return the request that was saved, and its answer where that was saved with it. Raises ValueError."""
    start = content.lstrip()
    if re.match(rb"(\$ )?curl\s", start):
        return _read_curl(start.removeprefix(b"$ ").decode(errors="surrogateescape")), None
    if start.startswith(b"{"):
        return _read_har(start)
    found = _request_line.match(start)
    if found is None:
        raise ValueError("expected a curl line, a HAR file, or a request as it is sent (POST /v1/messages HTTP/1.1)")
    headers, body = _read_head(start[found.end() :])
    target = found[2].decode("latin-1")
    return SavedRequest(found[1].decode(), _path_of(target), _framed(headers, body), body), None


def read_answer(content: bytes) -> SavedAnswer:
    """Return an answer that was saved as `curl -i` shows it, or its body alone. Raises ValueError."""
    start = content.lstrip()
    while (found := _status_line.match(start)) is not None:
        headers, body = _read_head(start[found.end() :])
        if 100 <= int(found[1]) < 200:  # what comes before the answer
            start = body.lstrip()
            continue
        return SavedAnswer(int(found[1]), _decoded(headers, body), body)
    if start.startswith((b"data:", b"event:", b":")):
        return SavedAnswer(200, [(b"content-type", b"text/event-stream")], content)
    if start.startswith((b"{", b"[")):
        return SavedAnswer(200, [(b"content-type", b"application/json")], content)
    raise ValueError("expected an answer as `curl -i` shows it (HTTP/1.1 200 OK, headers, body), or its body alone")


def _read_head(text: bytes) -> tuple[Headers, bytes]:
    """Return the headers, and what is behind them."""
    end = _head_end.search(text)
    head, body = (text[: end.start()], text[end.end() :]) if end else (text, b"")
    headers = []
    for line in head.splitlines():
        name, colon, value = line.partition(b":")
        if colon and name.strip():
            headers.append((name.strip().lower(), value.strip()))
    return headers, body


def _framed(headers: Headers, body: bytes) -> Headers:
    """Return headers whose length is that of the body: files end with a line end more, and lose chunks."""
    rest = [header for header in headers if header[0] not in (b"content-length", b"transfer-encoding")]
    return [*rest, (b"content-length", b"%d" % len(body))]


def _decoded(headers: Headers, body: bytes) -> Headers:
    """Return headers that fit a body which was decoded before it was saved."""
    if body.lstrip()[:1] in (b"{", b"[", b"d", b"e", b":"):
        headers = [header for header in headers if header[0] not in (b"content-encoding", b"content-length")]
    return headers


def _path_of(target: str) -> str:
    return unquote(urlsplit(target).path) or "/"


def _read_curl(line: str) -> SavedRequest:
    line = re.sub(r"\\\r?\n", " ", line)
    line = re.sub(r"\$'((?:[^'\\]|\\.)*)'", lambda found: shlex.quote(_unescape(found[1])), line)
    try:
        words = shlex.split(line)[1:]
    except ValueError as error:
        raise ValueError(f"the curl line can't be read: {str(error).lower()}") from None
    method, target, headers, data = None, None, [], []
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            target = word
            continue
        option, value = _read_option(word)
        if option not in _WITH_VALUE:
            continue
        if not value:
            if not words:
                raise ValueError(f"the curl line ends behind {option}")
            value = words.pop(0)
        if option in ("-X", "--request"):
            method = value
        elif option in ("-H", "--header"):
            name, _, text = value.partition(":")
            headers.append((_bytes(name.strip().lower()), _bytes(text.strip())))
        elif option in ("-u", "--user"):
            headers.append((b"authorization", b"Basic " + base64.b64encode(_bytes(value))))
        elif option == "--url":
            target = value
        elif option in _DATA:
            data.append(_read_data(option, value))
            if option == "--json":
                headers.append((b"content-type", b"application/json"))
    if target is None:
        raise ValueError("the curl line has no URL")
    body = b"&".join(data)
    path = _path_of(target if "://" in target else f"//{target}")
    return SavedRequest((method or ("POST" if data else "GET")).upper(), path, _framed(headers, body), body)


def _read_option(word: str) -> tuple[str, str]:
    """Return an option and its value, where that is the same word; of several letters the one that takes a value."""
    if word.startswith("--"):
        option, _, value = word.partition("=")
        return option, value
    for at, letter in enumerate(word[1:], start=2):
        if f"-{letter}" in _WITH_VALUE:
            return f"-{letter}", word[at:]
    return word, ""


def _read_data(option: str, value: str) -> bytes:
    if not value.startswith("@") or option == "--data-raw":
        return _bytes(value)
    content = read_file(value[1:])
    return content if option in ("--data-binary", "--json") else content.replace(b"\n", b"").replace(b"\r", b"")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _unescape(text: str) -> str:
    """Return what a shell makes of $'...'."""
    return re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", _unescape_one, text, flags=re.DOTALL)


def _unescape_one(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else {"n": "\n", "r": "\r", "t": "\t"}.get(code, code)


def _read_har(content: bytes) -> tuple[SavedRequest, SavedAnswer | None]:
    try:
        har = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it begins as a HAR file does, and is no JSON") from None
    try:
        entries = har["log"]["entries"] if "log" in har else [har]
        entry = next((each for each in entries if each["request"]["method"] == "POST"), entries[0])
        request, response = entry["request"], entry.get("response")
        body = _bytes(request.get("postData", {}).get("text", ""))
        saved = SavedRequest(request["method"], _path_of(request["url"]), _framed(_har_headers(request), body), body)
        return saved, None if not response or not response.get("status") else _har_answer(response)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise ValueError("it is JSON, and no HAR file with a request in log.entries") from None


def _har_headers(message: dict[str, Any]) -> Headers:
    pairs = [(_bytes(each["name"].lower()), _bytes(each["value"])) for each in message["headers"]]
    return [pair for pair in pairs if not pair[0].startswith(b":")]  # those of HTTP/2 are none


def _har_answer(response: dict[str, Any]) -> SavedAnswer:
    content = response.get("content", {})
    text = content.get("text", "")
    body = base64.b64decode(text) if content.get("encoding") == "base64" else _bytes(text)
    headers = _har_headers(response)
    kept = [header for header in headers if header[0] not in (b"content-encoding", b"content-length")]
    return SavedAnswer(response["status"], kept, body)
