"""TLS is spoken with the certificate that is named, or the server does not start."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path

import httpx2
import pytest
import trustme
import uvicorn
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from pluribus.errors import ConfigError
from pluribus.server.app import create_app
from pluribus.server.config import ServerConfig, TlsConfig
from pluribus.server.http import uvicorn_config
from pluribus.server.run import address, bind, run_server
from pluribus.server.tls import check_tls
from pluribus.supervisor import State
from server.fakes import FakeService


class Issued:
    """A certificate for localhost, its key, and who issued it."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("127.0.0.1")
        self.cert, self.key, self.both = folder / "cert", folder / "key", folder / "both"
        issued.cert_chain_pems[0].write_to_path(self.cert)
        issued.private_key_pem.write_to_path(self.key)
        issued.private_key_and_cert_chain_pem.write_to_path(self.both)

    def trusting(self) -> ssl.SSLContext:
        """Return what a client needs to trust it."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("is_one_file", [False, True], ids=["two files", "one file"])
def test_it_is_served_over_tls(issued: Issued, is_one_file: bool) -> None:
    tls = (
        TlsConfig(certfile=str(issued.both))
        if is_one_file
        else TlsConfig(certfile=str(issued.cert), keyfile=str(issued.key))
    )
    check_tls(tls)
    config = ServerConfig(port=0, tls=tls)
    app = create_app(FakeService(), config)
    with bind(config) as listener:
        url = address(listener, is_tls=True)
        server = uvicorn.Server(uvicorn_config(app, config, None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx2.Client(verify=issued.trusting()) as client:
                response = client.post(f"{url}/generation", json={"prompt": "Once"})
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                httpx2.get(f"{url}/livez")
            with pytest.raises(httpx2.HTTPError):
                httpx2.get(f"{url}/livez".replace("https", "http"))
        finally:
            server.should_exit = True
            thread.join()
    assert url.startswith("https://127.0.0.1:")
    assert response.status_code == 200


def refusal(certfile: Path, keyfile: Path | None) -> str:
    """Return why the server did not start."""
    tls = TlsConfig(certfile=str(certfile), keyfile=str(keyfile) if keyfile else None)
    service = FakeService()
    with pytest.raises(ConfigError) as error:
        run_server(service, ServerConfig(port=0, tls=tls))
    assert service.status.state is State.READY, "nothing has been started or stopped"
    return str(error.value)


def test_files_that_are_not_there_are_named(issued: Issued, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    said = refusal(nowhere, issued.key)
    assert said == f"server.tls.certfile={nowhere} cannot be read: No such file or directory"
    said = refusal(issued.cert, nowhere)
    assert said == f"server.tls.keyfile={nowhere} cannot be read: No such file or directory"


def test_files_that_do_not_fit_are_refused(issued: Issued, tmp_path: Path) -> None:
    other = tmp_path / "other"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    assert "not a certificate and its private key" in refusal(issued.cert, other)
    assert "not a certificate and its private key" in refusal(issued.cert, None)
    other.write_text("no PEM at all")
    assert "not a certificate and its private key" in refusal(other, issued.key)
    assert "not a certificate and its private key" in refusal(issued.cert, other)


def test_an_encrypted_key_is_refused_and_not_asked_for(issued: Issued, tmp_path: Path) -> None:
    key = load_pem_private_key(issued.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted"
    encrypted.write_bytes(
        key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        )
    )
    assert "server.tls.keyfile is encrypted" in refusal(issued.cert, encrypted)
