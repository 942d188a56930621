"""Which of this machine's addresses and interfaces lead to another machine."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import psutil

LOOPBACK = "lo"
ANY_PORT = 9
"""No packet is sent to it: a route is looked up."""


def address_towards(host: str) -> str:
    """Return the address of this machine that ``host`` sees it by.

    Raises:
        OSError: there is no such host, or no way to it.
    """
    family, kind, protocol, _, there = socket.getaddrinfo(host, ANY_PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(there)
        address: str = probe.getsockname()[0]
    return address


def interface(rendezvous: str) -> str:
    """Return the interface through which ranks talk that meet at ``rendezvous``.

    Raises:
        OSError: it is on another machine, and there is no way to it.
    """
    host = urlsplit(rendezvous).hostname
    if host is None:
        return LOOPBACK  # a file: everybody is on this machine
    ours = address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == ours for each in addresses):
            return str(name)
    raise OSError(f"no interface of this machine has the address {ours}, by which it sees {host}")


def talk_through(name: str) -> None:
    """Let the ranks' collectives use this interface alone, unless the environment names another."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # without "=" it is a prefix
