"""What `asgi-session-pin probe` tells an operator: no claim too much, no secret, and what to do next."""

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from asgi_session_pin import Config, Routing
from asgi_session_pin.cli import main
from asgi_session_pin.probe.litellm import MAX_ALIASES
from behaviour_document import Section, case
from fake_gateways import (
    DEPLOYMENTS,
    LARGE,
    REFUSED,
    SMALL,
    Answer,
    Asked,
    FakeGateway,
    deployment,
    litellm,
    plain_router,
    routellm,
)
from servers import serve_app


class Told:
    """Runs the command, and has what it printed with each white space as one blank."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.url = ""
        self.output = ""
        self.error = ""

    def __call__(self, gateway: FakeGateway, *arguments: str, scheme: str = "http", **options: object) -> int:
        with serve_app(gateway, **options) as url:
            upstream = url.replace("http", scheme)
            self.url = upstream
            code = main(["probe", "--upstream", upstream, *(arguments or ("--model", "auto"))])
        captured = self._capsys.readouterr()
        self.output, self.error = (" ".join(text.split()) for text in captured)
        return code


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys)


def naming(name: str) -> FakeGateway:
    """A gateway whose router chooses *name*."""
    return FakeGateway(lambda asked: Answer("", name if asked.model == "auto" else asked.model))


def test_a_gateway_that_is_too_busy_is_not_said_to_be_unfit(told: Told) -> None:
    def manner(asked: Asked) -> Answer:
        return plain_router(asked) if len(gateway.bodies) <= 7 else Answer("", status=429)

    gateway = FakeGateway(manner)
    assert told(gateway) == 2
    assert (
        "It could not be found out whether this gateway can be pinned by name: body:model names what could not be "
        "tried: 'acme/large' (HTTP 429 (model_not_found)), 'acme/small' (HTTP 429 (model_not_found)). "
        "- Try again when it is less busy, or with fewer names."
    ) in told.output
    assert "cannot" not in told.output


@pytest.mark.parametrize("name", ["Llama 3 8B", "mod\xe8le", "\x1b[31mred\n", "x" * 300])
def test_a_name_that_cannot_be_sent_back_is_told_from_none(told: Told, name: str) -> None:
    assert told(naming(name)) == 1
    shown = ascii(name) if len(name) < 80 else ascii(name[:77] + "...")
    why = f"the answers' usual places name what is no usable model name: {shown} (usable are at most 256"
    assert f"cannot be pinned by name: {why}" in told.output
    assert "name no model" not in told.output
    assert told.output.isprintable()


def test_all_names_refused_but_one_is_told(told: Told) -> None:
    assert told(FakeGateway(plain_router), "--model", "auto", "gpt-9") == 0
    assert "- 'gpt-9' was never served, so nothing is known of it." in told.output


def test_only_one_choice_is_told(told: Told) -> None:
    assert told(FakeGateway(lambda asked: Answer(SMALL, SMALL) if asked.model in ("auto", SMALL) else REFUSED)) == 0
    assert "- Only 'acme/small' was ever chosen; what else may be was not seen." in told.output


def test_it_is_told_how_to_go_on(told: Told) -> None:
    assert told(FakeGateway(plain_router)) == 0
    assert "Add the name of a model to --model" in told.output
    assert f"Next: asgi-session-pin serve --upstream {told.url} 16 requests" in told.output
    assert told(FakeGateway(plain_router), "--model", "auto", LARGE) == 0
    assert "Next, with these settings in session_pin.yaml (--output session_pin.yaml writes that file):" in told.output
    assert f"asgi-session-pin serve --config session_pin.yaml --upstream {told.url} " in told.output
    assert "Add the name" not in told.output


def test_the_settings_are_written_into_a_new_file(told: Told, file: Path) -> None:
    asked = ["--model", "auto", LARGE, "--output", str(file)]
    assert told(FakeGateway(plain_router), *asked) == 0
    assert f"These settings are in {file}. Next: asgi-session-pin serve \\ --config {file} \\ --upstream" in told.output
    assert Config.load(file) == Config(routing=Routing(router_models=("auto",)))
    assert file.read_text().startswith(
        f"# What asgi-session-pin probe found for 'auto', '{LARGE}' at http://127.0.0.1:"
    )
    file.write_text("mine")
    gateway = FakeGateway(plain_router)
    with pytest.raises(SystemExit):
        told(gateway, *asked)
    assert (file.read_text(), gateway.requests) == ("mine", [])
    assert told(FakeGateway(plain_router), *asked, "--overwrite") == 0
    assert Config.load(file).routing.router_models == ("auto",)


def test_where_no_setting_is_needed_the_file_has_none_and_loads(told: Told, file: Path) -> None:
    assert told(FakeGateway(plain_router), "--model", "auto", "--output", str(file)) == 0
    assert Config.load(file) == Config()


def test_what_cannot_be_pinned_makes_no_file(told: Told, file: Path) -> None:
    assert told(FakeGateway(routellm), "--model", "router-random-0.5", "--output", str(file)) == 1
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_told_and_the_settings_are_printed(told: Told, file: Path) -> None:
    missing = file.parent / "missing" / "file.yaml"
    assert told(FakeGateway(plain_router), "--model", "auto", LARGE, "--output", str(missing)) == 2
    assert told.error.endswith(f"error: {missing} can't be written: No such file or directory")
    assert "router_models: - auto" in told.output


def test_the_verdict_comes_first_then_the_settings_and_tables_only_where_they_are_asked_for(told: Told) -> None:
    assert told(FakeGateway(plain_router), "--model", "auto", LARGE) == 0
    assert told.output.startswith("This gateway can be pinned by name, with these settings: body:model names the")
    assert "takes that name back. routing: router_models: - auto - router_models: a router decides" in told.output
    assert "6 of 6 served" not in told.output
    assert told(FakeGateway(plain_router), "--verbose", "--model", "auto", LARGE) == 0
    assert "'auto', asked for: 6 of 6 served" in told.output


def test_a_place_that_need_not_be_examined_is_told_so(told: Told) -> None:
    def manner(asked: Asked) -> Answer:
        return plain_router(asked)._replace(headers={"x-route": "fast"})

    assert told(FakeGateway(manner), "--verbose", "--model", "auto") == 0
    assert "? header:x-route was not examined: a better place works" in told.output


def test_a_litellm_that_hides_its_groups_is_probed_with_their_names(told: Told) -> None:
    assert told(FakeGateway(litellm), "--model", "smart") == 1
    assert "cannot be pinned by name, as far as these requests show: header:x-litellm-model-name" in told.output
    assert "Use a key that may read it, or give the names of the models to --model too." in told.output
    assert told(FakeGateway(litellm), "--model", "smart", "small", "large") == 0
    assert f"aliases: {SMALL}: small {LARGE}: large" in told.output
    assert "header:x-litellm-complexity-router-cause: - housekeeping - plan_mode" in told.output


def test_aliases_that_are_left_out_are_told(told: Told) -> None:
    many = [deployment(f"group-{number}", f"vendor/{number}") for number in range(MAX_ALIASES)]
    lists = {"/model/info": {"data": [*many, *DEPLOYMENTS["data"]]}}
    assert told(FakeGateway(litellm, lists), "--model", "smart") == 0
    assert f"- aliases: of many, {MAX_ALIASES} are here; add those that the router can choose." in told.output
    assert f"{SMALL}: small" in told.output


@pytest.mark.parametrize(("columns", "widest"), [("40", 80), ("80", 80), ("90", 90), ("300", 100)])
def test_the_text_fits_the_terminal(
    columns: str, widest: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def manner(asked: Asked) -> Answer:
        headers = {"x-some-vendors-own-header-with-a-model": "a-vendors-name/" + "of-a-model" * 3}
        return plain_router(asked)._replace(headers=headers)

    monkeypatch.setenv("COLUMNS", columns)
    with serve_app(FakeGateway(manner)) as url:
        assert main(["probe", "--upstream", url, "--verbose", "--model", "auto"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert widest - 12 <= max(map(len, lines)) <= widest
    assert "  body:model" in {line[:12] for line in lines}


def test_each_step_is_told_as_it_begins(told: Told) -> None:
    assert told(FakeGateway(plain_router)) == 0
    steps = ["asking for 'auto'", "reading the lists of models"]
    steps += ["asking for 'asgi-session-pin-probe-nonexistent', which no gateway has"]
    steps += [f"sending back '{SMALL}'", f"sending back '{LARGE}'"]
    assert told.error.endswith(" ".join(f"asgi-session-pin probe: {step}" for step in steps))


@case(
    Section.GATEWAY,
    "`--upstream` ends with `/v1`, which requests begin with",
    "it does not start, and says which URL is meant",
)
@pytest.mark.parametrize("command", [["serve"], ["probe", "--model", "auto"]])
@pytest.mark.parametrize(
    ("base", "repeated", "meant"),
    [
        ("/v1", "/v1", ""),
        ("/v1/", "/v1", ""),
        ("/api/v1", "/v1", "/api"),
        ("/v1/chat/completions", "/v1/chat/completions", ""),
    ],
)
def test_a_path_that_would_be_there_twice_is_told_before_anything_is_sent(
    command: list[str], base: str, repeated: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--upstream", f"http://127.0.0.1:9{base}"])
    assert ended.value.code == 2
    told = f"leave out {repeated} at its end, paths of requests begin with it: http://127.0.0.1:9{meant}\n"
    assert f"argument --upstream: {told}" in capsys.readouterr().err


KEY = "sk-operators-own-key-" + "0123456789" * 10  # longer than what is shown of a name


def lists_with_the_key(place: str) -> dict[str, dict[str, list[Any]]]:
    """Return lists that name the key in one place."""
    group, model, identity = (KEY if place == each else "small" for each in ("group", "model", "id"))
    listed = [{"id": KEY if place == "list" else "small"}]
    deployments = [*DEPLOYMENTS["data"][:1], *DEPLOYMENTS["data"][2:], deployment(group, SMALL, identity)]
    return {"/v1/models": {"data": listed}, "/model/info": {"data": [*deployments, deployment("other", model)]}}


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("place", ["group", "model", "id", "list"])
def test_a_gateway_that_names_the_key_has_it_printed_nowhere(told: Told, place: str, as_json: list[str]) -> None:
    gateway = FakeGateway(litellm, lists_with_the_key(place))
    told(gateway, "--model", "smart", "--key", KEY, *as_json)
    assert "/model/info" in {path for _, path in gateway.requests}
    assert KEY[:20] not in told.output + told.error


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_key_that_is_given_as_a_name_or_in_the_url_is_printed_nowhere(told: Told, as_json: list[str]) -> None:
    def manner(asked: Asked) -> Answer:
        return plain_router(asked._replace(model="auto") if asked.model == KEY else asked)

    path = f"/{KEY}/v1/chat/completions"
    assert told(FakeGateway(manner), "--model", KEY, SMALL, "--path", path, "--key", KEY, *as_json) == 0
    assert "asking for '(hidden)'" in told.error
    assert "/(hidden)/v1/chat/completions" in told.error
    assert KEY[:20] not in told.output + told.error
    assert told(FakeGateway(lambda asked: REFUSED), "--model", "hunter2", "--key", "hunter2") == 2
    assert "hunter2" not in told.output + told.error


def test_a_key_in_a_url_that_is_refused_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["probe", "--upstream", f"http://127.0.0.1:9/{KEY}/v1", "--model", "auto", "--key", KEY])
    told = capsys.readouterr().err
    assert "http://127.0.0.1:9/(hidden)" in told
    assert KEY[:20] not in told


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_credentials_in_headers_do_not_show_short_ones_but_as_a_part_of_a_name(told: Told, as_json: list[str]) -> None:
    def respond(request: Request) -> Response:
        passcode = request.headers["x-passcode"]
        model = gateway.bodies[-1]["model"]
        if model != "auto":
            return JSONResponse({"error": {"code": passcode}}, 404)
        content = {"model": f"{passcode}/gpt", "model_for": passcode}
        return JSONResponse(content, headers={"x-model-for": passcode, "x-model": request.headers["x-default-model"]})

    class Echoing(FakeGateway):
        async def _answer(self, request: Request) -> Response:
            self.bodies.append(await request.json() if request.method == "POST" else {"model": ""})
            return respond(request)

    gateway = Echoing(plain_router)
    headers = ["--header", "X-Passcode: hunter2", "--header", "X-Default-Model: gpt-4o"]
    assert told(gateway, "--model", "auto", *headers, "--verbose", *as_json) == 1
    assert "hunter2" not in (told.output + told.error).replace("hunter2/gpt", "")  # a part of a name is none of it
    assert "header:x-model-for" not in told.output
    assert "what holds a credential is left out" in told.output
    assert "gpt-4o" in told.output  # this is about models


def test_a_stop_by_the_keyboard_is_one_line_and_130(told: Told) -> None:
    def manner(asked: Asked) -> Answer:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # which waits for this answer
        threading.Event().wait(1)
        return Answer("", status=500)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        assert told(FakeGateway(manner)) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert told.output == ""
    assert told.error.endswith("asgi-session-pin probe: stopped; requests sent: 1")


def test_a_certificate_that_is_not_trusted_is_told_and_can_be_trusted(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    for name, content in [("key", issued.private_key_pem), ("own", issued.cert_chain_pems[0])]:
        content.write_to_path(tmp_path / name)
    authority.cert_pem.write_to_path(tmp_path / "authority")
    served_by = {"ssl_keyfile": tmp_path / "key", "ssl_certfile": tmp_path / "own"}
    assert told(FakeGateway(plain_router), scheme="https", **served_by) == 2
    assert ": its certificate is not trusted (unable to get local issuer certificate); SSL_CERT_FILE can" in told.error
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
    assert told(FakeGateway(plain_router), scheme="https", **served_by) == 0
    assert told(FakeGateway(plain_router), scheme="http", **served_by) == 2
    assert told.error.endswith(": the connection was closed without an answer")


def test_a_url_whose_scheme_is_wrong_is_told(told: Told) -> None:
    assert told(FakeGateway(plain_router), scheme="https") == 2
    assert told.error.endswith("); is it an http:// URL?")
    assert ": TLS failed (" in told.error
    assert "_ssl.c" not in told.error
