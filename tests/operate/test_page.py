"""The operators' page: one file that a browser may run, and nothing else."""

import base64
import hashlib
import re

import pytest

from asgi_driver import Gateway, call
from asgi_session_pin import Config, SessionPinMiddleware
from asgi_session_pin.config import Admin
from asgi_session_pin.gateway import create_gateway
from asgi_session_pin.operate.admin import create_admin
from asgi_session_pin.operate.page import make_page
from behaviour_document import Section, case

CONTENT = bytes(make_page().body).decode()
TOKEN = "0123456789abcdef"


@case(Section.OPERATORS, "the page, with a token in the settings", "200, for anybody: it holds nothing")
@pytest.mark.parametrize("path", ["", "/"])
async def test_the_page_is_there_where_there_is_a_token(path: str) -> None:
    pinned = SessionPinMiddleware(Gateway("a"), config=Config(admin=Admin(token=TOKEN)))
    answer = await call(create_admin(pinned), b"", path=path, method="GET")
    assert answer.start["status"] == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.body.decode() == CONTENT
    gateway = create_gateway("http://127.0.0.1:9", Config(admin=Admin(token=TOKEN)))
    assert (await call(gateway, b"", path=f"/-/session-pin{path}", method="GET")).body == answer.body


@pytest.mark.parametrize("path", ["", "/"])
async def test_without_a_token_in_the_settings_there_is_no_page(path: str) -> None:
    pinned = SessionPinMiddleware(Gateway("a"))
    assert (await call(create_admin(pinned), b"", path=path, method="GET")).start["status"] == 404


def test_a_browser_may_run_its_own_script_alone() -> None:
    policy = make_page().headers["content-security-policy"]
    for kind in ("script", "style"):
        [inline] = re.findall(rf"<{kind}>(.*?)</{kind}>", CONTENT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", CONTENT)


def test_the_page_is_small_and_brings_nothing_from_elsewhere() -> None:
    assert len(CONTENT) < 60_000
    assert not re.search(r"https?://|//[a-z]+\.[a-z]", CONTENT)


def test_what_comes_from_anywhere_is_text_and_never_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", CONTENT)
