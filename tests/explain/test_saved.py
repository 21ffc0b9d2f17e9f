"""Saved requests and answers, as curl, browsers and people write them down."""

import base64
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_session_pin.explain import read_answer, read_file, read_request
from asgi_session_pin.explain.saved import MAX_FILE_BYTES, SavedRequest

BODY = b'{"model": "auto"}'


def read(text: str) -> SavedRequest:
    request, answer = read_request(text.encode())
    assert answer is None
    return request


ID = "-H 'X-Session-Id: s-1'"
CURLS = {
    "plain": f"""curl http://a/v1/messages {ID} -d '{{"model": "auto"}}'""",
    "with a prompt": f"""$ curl http://a/v1/messages {ID} -d '{{"model": "auto"}}'""",
    "over several lines": f"""curl http://a/v1/messages \\\n  {ID} \\\n  --data-raw '{{"model": "auto"}}'\n""",
    "of a browser": f"""curl 'http://a/v1/messages' {ID} --data-raw $'{{"model": "\\u0061uto"}}' --compressed""",
    "with options": f"""curl -sSXPOST -m 5 -o /x --url http://a/v1/messages?b=1 {ID} -d'{{"model": "auto"}}'""",
    "without blanks": """curl -HX-Session-Id:s-1 a/v1/messages -d '{"model": "auto"}'""",
    "with json": """curl --json='{"model": "auto"}' --header='X-Session-Id: s-1' a/v1/messages""",
    "with escapes": f"""curl a/v1/messages {ID} -d $'{{"model":\\n\\x22auto\\x22}}'""",
}


@pytest.mark.parametrize("kind", CURLS)
def test_a_curl_line_is_the_request_that_curl_sends(kind: str) -> None:
    request = read(CURLS[kind])
    assert (request.method, request.path) == ("POST", "/v1/messages")
    assert (b"x-session-id", b"s-1") in request.headers
    assert (b"content-length", b"%d" % len(request.body)) in request.headers
    assert json.loads(request.body) == {"model": "auto"}


def test_a_curl_line_may_read_its_body_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "body.json"
    file.write_bytes(b'{"model":\n"auto"}')
    assert read(f"curl a/b --data-binary @{file}").body == b'{"model":\n"auto"}'
    assert read(f"curl a/b -d @{file}").body == b'{"model":"auto"}'
    assert read("curl a/b --data-raw @x").body == b"@x"


def test_a_curl_line_without_a_body_is_a_get_and_a_user_a_credential() -> None:
    request = read("curl -u me:secret http://a")
    assert (request.method, request.path, request.body) == ("GET", "/", b"")
    assert (b"authorization", b"Basic " + base64.b64encode(b"me:secret")) in request.headers


def test_a_request_as_it_is_sent_has_the_length_of_what_was_saved() -> None:
    head = "POST /v1/messages?beta=true HTTP/1.1\nHost: a\nX-Session-Id: s-1\nContent-Length: 99\nnothing\n\n"
    for text in (head, head.replace("\n", "\r\n")):
        request, _ = read_request(text.encode() + BODY)
        assert (request.method, request.path, request.body) == ("POST", "/v1/messages", BODY)
        headers = [(b"host", b"a"), (b"x-session-id", b"s-1"), (b"content-length", b"17")]
        assert request.headers == headers


def har(**response: Any) -> bytes:
    headers = [{"name": ":authority", "value": "a"}, {"name": "X-Session-Id", "value": "s-1"}]
    request = {
        "method": "POST",
        "url": "https://a/v1/messages",
        "headers": headers,
        "postData": {"text": BODY.decode()},
    }
    other = {"request": {"method": "GET", "url": "https://a/", "headers": []}}
    return json.dumps({"log": {"entries": [other, {"request": request, "response": response}]}}).encode()


def test_a_har_file_has_the_first_post_request_and_its_answer() -> None:
    coded = [{"name": "Content-Encoding", "value": "br"}, {"name": "X-Model", "value": "gpt"}]
    for content in ({"text": "{}"}, {"text": base64.b64encode(b"{}").decode(), "encoding": "base64"}):
        request, answer = read_request(har(status=200, headers=coded, content=content))
        assert (request.method, request.path, request.body) == ("POST", "/v1/messages", BODY)
        assert request.headers == [(b"x-session-id", b"s-1"), (b"content-length", b"17")]
        assert answer is not None
        assert (answer.status, answer.headers, answer.body) == (200, [(b"x-model", b"gpt")], b"{}")


def test_an_entry_of_a_har_file_alone_will_do_and_may_have_no_answer() -> None:
    entry = json.loads(har(status=0))["log"]["entries"][1]
    assert read(json.dumps(entry)).path == "/v1/messages"


NO_REQUESTS = {
    b"hello": "expected a curl line, a HAR file, or a request as it is sent",
    b"curl 'a": "the curl line can't be read: no closing quotation",
    b"curl -H": "the curl line ends behind -H",
    b"curl -s": "the curl line has no URL",
    b"curl a -d @/missing": "/missing can't be read: No such file or directory",
    b"{": "it begins as a HAR file does, and is no JSON",
    b"{}": "it is JSON, and no HAR file with a request in log.entries",
    b'{"log": {"entries": []}}': "it is JSON, and no HAR file with a request in log.entries",
}


@pytest.mark.parametrize("content", NO_REQUESTS)
def test_what_is_no_request_is_told(content: bytes) -> None:
    with pytest.raises(ValueError, match=NO_REQUESTS[content]):
        read_request(content)


@given(st.binary() | st.text().map(lambda text: b"curl " + text.encode(errors="ignore")))
def test_any_file_is_read_or_refused(content: bytes) -> None:
    for read_one in (read_request, read_answer):
        with contextlib.suppress(ValueError):
            read_one(content)


def test_an_answer_is_what_follows_the_interim_ones_and_was_decoded() -> None:
    text = b'HTTP/1.1 100 Continue\r\n\r\nHTTP/2 429 \r\nContent-Encoding: gzip\r\nX-Model: gpt\r\n\r\n{"a": 1}'
    assert read_answer(text) == (429, [(b"x-model", b"gpt")], b'{"a": 1}')
    coded = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n\x1f\x8b"
    assert read_answer(coded).headers == [(b"content-encoding", b"gzip")]


@pytest.mark.parametrize(("body", "kind"), [(b"{}", b"application/json"), (b"data: {}\n\n", b"text/event-stream")])
def test_an_answers_body_alone_will_do(body: bytes, kind: bytes) -> None:
    assert read_answer(body) == (200, [(b"content-type", kind)], body)


def test_what_is_no_answer_is_told() -> None:
    with pytest.raises(ValueError, match="expected an answer as `curl -i` shows it"):
        read_answer(b"<p>")


def test_files_are_bounded(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="is larger than"):
        read_file(str(large))
