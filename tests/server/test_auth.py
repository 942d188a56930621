"""Only those who hold a key come in, where there are keys, and no message shows one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from pluribus.errors import ConfigError
from pluribus.server.admission import MAX_TENANTS, Admission
from pluribus.server.auth import Keyring, load_keyring
from pluribus.server.config import AuthConfig, ServerConfig, TlsConfig
from pluribus.tenants import ANONYMOUS, Tenant

KEY = "sk-not-for-anybodys-eyes"
ALICE = Tenant(name="alice", weight=2, max_requests=8, requests_per_minute=60)


def keyring(
    file: Path | None = None, environment: Mapping[str, str] | None = None, **settings: Any
) -> Keyring | None:
    auth = AuthConfig(keys_file=str(file) if file else None)
    return load_keyring(ServerConfig(auth=auth, **settings), environment or {})


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.touch(0o600)
    return path


def client_of(keys: Keyring | None, **settings: Any) -> TestClient:
    """Return a client of a server that answers with the tenant's name."""

    async def tell(request: Request) -> Response:
        return PlainTextResponse(request.state.tenant.name)

    paths = ["/", "/livez", "/readyz", "/health", "/version", "/docs", "/metrics", "/v1/models"]
    config = ServerConfig(**settings)
    return TestClient(
        Starlette(
            routes=[*(Route(path, tell) for path in paths), Mount("/static", Route("/{x}", tell))],
            middleware=[Middleware(Admission, config=config, keyring=keys)],
        )
    )


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_file_gives_each_key_its_tenant(keys_file: Path) -> None:
    keys_file.write_text(
        "# who may come in\n"
        f"alice {KEY} weight=2 max_requests=8 requests_per_minute=60  # the first\n"
        "\n"
        "bob   sk-bob\n"
    )
    keys = keyring(keys_file)
    assert keys is not None
    assert keys.find(KEY) == ALICE
    assert keys.find("sk-bob") == Tenant(name="bob")
    assert keys.find("sk-carol") is None
    assert keys.find("") is None


def test_a_tenant_may_have_several_keys(keys_file: Path) -> None:
    keys_file.write_text("alice old weight=2\nalice new weight=2\n")
    keys = keyring(keys_file)
    assert keys is not None
    assert keys.find("old") == keys.find("new") == Tenant(name="alice", weight=2)


def test_a_variable_holds_keys_too(keys_file: Path) -> None:
    keys_file.write_text("alice of-alice\n")
    keys = keyring(keys_file, {"PLURIBUS_API_KEYS": "one, two"})
    assert keys is not None
    names = {key: keys.find(key) for key in ("one", "two", "of-alice")}
    assert [tenant.name for tenant in names.values() if tenant] == ["key-1", "key-2", "alice"]


def test_a_keyring_holds_no_key(keys_file: Path) -> None:
    keys_file.write_text(f"alice {KEY}\n")
    assert KEY not in repr(keyring(keys_file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        (f"{KEY}\n", "line 1 must read NAME KEY"),
        (f"\nal/ice {KEY}\n", "line 2 must read NAME KEY"),
        (f"{KEY} alice weight=0\n", "line 1: weight must be above 0, got 0.0"),
        (f"alice {KEY} {KEY}\n", "line 1 must read NAME KEY"),
        (f"alice {KEY} {KEY}=1\n", "line 1 must read NAME KEY"),
        (f"alice {KEY} weight=1 weight=1\n", "line 1 must read NAME KEY"),
        (f"alice {KEY} max_requests={KEY}\n", "line 1: max_requests must be a number"),
        (f"alice {KEY} max_requests=0\n", "line 1: max_requests must be at least 1, got 0"),
        (f"alice {KEY},é\n", "line 1: a key must be of printable ASCII"),
        (f"alice {KEY}\nbob {KEY}\n", "line 2: the key has come before"),
        (f"alice {KEY}\nalice x weight=2\n", "line 2: the name has come before, with other"),
    ],
    ids=range(13),
)
def test_a_file_that_is_malformed_is_refused_by_line(
    keys_file: Path, text: str, message: str
) -> None:
    keys_file.write_text(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        keyring(keys_file)
    assert "server.auth.keys_file=" in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys_file=.*/nowhere cannot be read: No such file"):
        keyring(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"keys_file=.* cannot be read: Is a directory"):
        keyring(tmp_path)
    (tmp_path / "latin").write_bytes("alice schlüssel".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"cannot be read: it is not text in UTF-8"):
        keyring(tmp_path / "latin")


@pytest.mark.parametrize(("mode", "is_said"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_everybody_can_read_is_said(keys_file: Path, mode: int, is_said: bool) -> None:
    keys_file.write_text(f"alice {KEY}\n")
    keys_file.chmod(mode)
    with capture_logs() as records:
        keyring(keys_file)
    assert ("chmod it 600" in str(records)) == is_said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "key 1 of the environment variable PLURIBUS_API_KEYS.* printable ASCII"),
        (f"{KEY},", "key 2 of the environment variable PLURIBUS_API_KEYS.* printable ASCII"),
        (f"{KEY},{KEY}", "key 2 of the environment variable PLURIBUS_API_KEYS.* has come before"),
        (f"{KEY} x", "key 1 of the environment variable PLURIBUS_API_KEYS"),
    ],
)
def test_a_variable_that_is_malformed_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        keyring(environment={"PLURIBUS_API_KEYS": given})
    assert KEY not in str(refusal.value)


def test_names_of_file_and_variable_do_not_mix(keys_file: Path) -> None:
    keys_file.write_text(f"key-1 {KEY}\n")
    with pytest.raises(ConfigError, match=r"is called key-1, like one of server\.auth\.keys_file"):
        keyring(keys_file, {"PLURIBUS_API_KEYS": "other"})
    with pytest.raises(ConfigError, match=r"key 1 .* has come before"):
        keyring(keys_file, {"PLURIBUS_API_KEYS": KEY})


def test_without_keys_everybody_is_the_same_tenant() -> None:
    assert keyring() is None
    assert client_of(None).get("/v1/models", headers=bearing("any")).text == ANONYMOUS.name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_are_let_in_with_keys_or_if_that_is_said(host: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.auth\.keys_file, .*server\.allow_remote=true"):
        keyring(host=host)
    assert keyring(host=host, allow_remote=True) is None
    environment = {"PLURIBUS_API_KEYS": KEY}
    with capture_logs() as records:
        assert keyring(host=host, environment=environment) is not None
    assert "in the clear" in str(records)
    with capture_logs() as records:
        keyring(host=host, environment=environment, tls=TlsConfig(certfile="some.pem"))
    assert not records


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_is_always_let_in(host: str) -> None:
    assert keyring(host=host) is None


def test_a_key_lets_its_tenant_in() -> None:
    client = client_of(Keyring.of({KEY: ALICE}))
    assert client.get("/v1/models", headers=bearing(KEY)).text == "alice"
    assert client.get("/v1/models", headers={"authorization": f"bearer  {KEY} "}).text == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        bearing(KEY[:-1]),
        bearing(KEY + "x"),
        bearing(KEY.upper()),
        {"Authorization": b"Bearer \xff\xfe"},
        {"X-Api-Key": KEY},
    ],
    ids=range(10),
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nothing", "/livez/", "/static"])
def test_nobody_else_comes_in(path: str, headers: dict[str, str]) -> None:
    client = client_of(Keyring.of({KEY: ALICE, "sk-bob": Tenant(name="bob")}))
    response = client.get(path, headers=headers, follow_redirects=False)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert KEY[:-1] not in response.text


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/health", "/version", "/docs", "/static/docs.js"]
)
def test_what_tells_nothing_of_the_tenants_is_open(path: str) -> None:
    assert client_of(Keyring.of({KEY: ALICE})).get(path).text == ANONYMOUS.name


def test_metrics_are_open_if_that_is_said() -> None:
    client = client_of(Keyring.of({KEY: ALICE}), auth=AuthConfig(open_metrics=True))
    assert client.get("/metrics").status_code == 200
    assert client.get("/v1/models").status_code == 401


def test_a_header_names_the_tenant_where_there_are_no_keys() -> None:
    client = client_of(None, tenant_header="X-Tenant")
    assert client.get("/v1/models", headers={"x-tenant": "team-7"}).text == "team-7"
    assert client.get("/v1/models").text == ANONYMOUS.name
    assert client_of(None).get("/v1/models", headers={"X-Tenant": "team-7"}).text == "anonymous"


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a{b}"])
def test_a_header_names_no_nonsense(name: str) -> None:
    response = client_of(None, tenant_header="X-Tenant").get("/", headers={"X-Tenant": name})
    assert response.status_code == 200, "the pages are for everybody"
    response = client_of(None, tenant_header="X-Tenant").get(
        "/v1/models", headers={"X-Tenant": name}
    )
    assert response.status_code == 400
    assert "the header X-Tenant must be 1 to 64 letters" in response.json()["error"]["message"]


def test_a_header_names_a_bounded_number_of_tenants() -> None:
    client = client_of(None, tenant_header="X-Tenant")
    for number in range(MAX_TENANTS):
        client.get("/v1/models", headers={"X-Tenant": f"t{number}"})
    assert client.get("/v1/models", headers={"X-Tenant": "new"}).text == ANONYMOUS.name
    assert client.get("/v1/models", headers={"X-Tenant": "t7"}).text == "t7"


def test_a_header_beside_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"server\.tenant_header=X-Tenant is for servers without"):
        keyring(environment={"PLURIBUS_API_KEYS": KEY}, tenant_header="X-Tenant")
