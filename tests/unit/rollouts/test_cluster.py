"""Addresses where no Ray cluster is."""

import signal
import socket

import pytest

from distforge.errors import InputError
from distforge.rollouts import RolloutConfig, cluster
from distforge.rollouts.cluster import connected, is_loopback


def refusal(address: str) -> str:
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(InputError) as caught,
        connected(RolloutConfig(num_actors=1, address=address)),
    ):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    return str(caught.value)


def test_a_closed_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"no Ray cluster answers at 127.0.0.1:{port}: " in refusal(f"127.0.0.1:{port}")


def test_an_address_without_a_port_is_refused():
    assert "expected 'host:port', 'auto' or nothing" in refusal("somewhere")


def test_a_server_that_is_no_ray_is_given_up(monkeypatch):
    monkeypatch.setattr(cluster, "PROBE_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert f"no Ray cluster answers at '{address}' within 2 s" in refusal(address)


@pytest.mark.parametrize(
    "host,expected",
    [
        ("127.0.0.1", True),
        ("[::1]", True),
        ("localhost", True),
        ("192.0.2.2", False),
        ("0.0.0.0", False),
        ("example.org", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected
