"""The operators' page in a browser, on a gateway that serves."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, sync_playwright
from playwright.sync_api import Request as PageRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_session_pin import Config, Routing
from asgi_session_pin.config import Admin
from asgi_session_pin.gateway import create_gateway
from servers import serve_app

TOKEN = "a-token-of-the-operator"
HOSTILE = "<img/src=x/onerror=alert(1)>"
ALL = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def upstream() -> Starlette:
    """Return a gateway that routes `auto` to the next of its models, and takes any other name."""
    models = ["small", "large", HOSTILE]

    async def answer(request: Request) -> JSONResponse:
        asked = (await request.json())["model"]
        if asked == "auto":
            models.append(models.pop(0))
            asked = models[-1]
        return JSONResponse({"model": asked, "choices": [{"message": {"content": "hello"}}]})

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])


def ask(url: str, session: str) -> str:
    headers = {"x-session-id": session, "authorization": "Bearer the-clients-key"}
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "auto"}, headers=headers, trust_env=False)
    return f"{answer.headers['x-session-pin-status']} {answer.json()['model']}"


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    config = Config(routing=Routing(router_models=("auto",)), admin=Admin(token=TOKEN))
    with serve_app(upstream()) as behind, serve_app(create_gateway(behind, config)) as url:
        yield url


@contextmanager
def opened(url: str, *, width: int = 1280, scheme: Any = "light") -> Iterator[Page]:
    """Open the page and give the token; whatever happens there, nothing is complained of and no other host asked."""
    complaints: list[str] = []
    asked: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALL)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()

        def complain(message: ConsoleMessage) -> None:
            complaints.append(message.text)

        def take_note(request: PageRequest) -> None:
            asked.add(request.url.split("/-/")[0])

        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", take_note)
        page.goto(f"{url}/-/session-pin/")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        page.get_by_text("connected").wait_for()
        yield page
        context.close()
        browser.close()
    assert complaints == []
    assert {each for each in asked if not each.startswith("data:")} == {url}


def test_an_operator_sees_searches_drops_and_retires(gateway: str) -> None:
    assert [ask(gateway, f"s{number}") for number in range(3)] == ["miss small", "miss large", f"miss {HOSTILE}"]
    with opened(gateway) as page:
        page.get_by_role("row", name=re.compile("^small")).wait_for()
        assert page.locator("#count").inner_text() == "3"
        assert page.locator("#pins tr").count() == 3
        assert page.locator("#models").get_by_text(HOSTILE).count() == 1  # it is text

        ask(gateway, "s0")
        page.locator("#events .hit").first.wait_for()
        assert page.locator("#rate").inner_text() == "100 %"

        page.keyboard.press("/")
        page.keyboard.type("s0")
        page.get_by_label("Credential header").fill("Authorization: Bearer the-clients-key")
        page.get_by_label("Asked for").fill("auto")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Show all").wait_for()
        assert page.locator("#pins tr").count() == 1
        assert page.get_by_label("Credential header").input_value() == ""

        page.locator("#pins").get_by_role("button", name=re.compile("^Drop")).click()
        page.get_by_role("button", name="Drop", exact=True).click()
        page.get_by_text("Dropped.").wait_for()
        page.get_by_role("button", name="Show all").click()
        page.wait_for_function("document.querySelectorAll('#pins tr').length === 2")
        assert ask(gateway, "s0").startswith("miss ")

        page.get_by_role("button", name="Retire large").click()
        page.get_by_role("dialog").get_by_role("button", name="Retire").click()
        page.get_by_role("button", name="Restore large").wait_for()
    headers = {"authorization": f"Bearer {TOKEN}"}
    retired = httpx.get(f"{gateway}/-/session-pin/api/retired", headers=headers, trust_env=False).json()
    assert retired == {"retired": ["large"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_for_everybody(gateway: str, width: int, scheme: str) -> None:
    with opened(gateway, width=width, scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    with sync_playwright() as playwright:  # axe brings a script of its own, which the page's policy does not let in
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALL)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        page = context.new_page()
        page.goto(f"{gateway}/-/session-pin/")
        assert Axe().run(page).violations_count == 0
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open").click()
        page.get_by_text("connected").wait_for()
        assert Axe().run(page).violations_count == 0
        context.close()
        browser.close()


def test_a_wrong_token_is_told_and_forgotten(gateway: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ALL)
        page = browser.new_page()
        page.goto(f"{gateway}/-/session-pin")
        page.get_by_role("textbox", name="Token").fill("another-token-of-16")
        page.get_by_role("button", name="Open").click()
        page.get_by_role("alert").get_by_text("not the right one").wait_for()
        assert page.evaluate("sessionStorage.length") == 0
        browser.close()
