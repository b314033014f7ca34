"""Which interface the processes of a run use: the one on the way to where they meet."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from xvlm_core.train import network
from xvlm_core.train.launch import Place
from xvlm_core.train.network import GLOO_INTERFACE, address_towards, choose_interface, interface_of

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")


class Store:
    """What the ranks wrote."""

    def __init__(self, *others: str) -> None:
        self.written = {f"xvlm/address/0/{rank}": text for rank, text in enumerate(others, 1)}

    def set(self, key: str, value: str) -> None:
        self.written[key] = value

    def multi_get(self, keys: list[str]) -> Sequence[bytes]:
        return [self.written[key].encode() for key in keys]


def chosen(place: Place, store: Store, **environ: str) -> str | None:
    choose_interface(place, store, environ)
    return environ.get(GLOO_INTERFACE)


@linux
def test_on_one_machine_it_is_the_loopback() -> None:
    place = Place(0, 2, 0, 2, "127.0.0.1:29500", "xvlm")
    store = Store("127.0.0.1")
    assert chosen(place, store) == interface_of("127.0.0.1") == "lo"
    assert store.written["xvlm/address/0/0"] == "127.0.0.1"


@linux
def test_what_the_user_set_stays() -> None:
    place = Place(0, 2, 0, 2, "127.0.0.1:29500", "xvlm")
    assert chosen(place, Store("127.0.0.1"), GLOO_SOCKET_IFNAME="ib0") == "ib0"


def test_where_the_masters_name_is_the_loopback_there_the_others_show_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian writes the name of a machine into its /etc/hosts as 127.0.1.1."""
    ways = {"node0": "127.0.0.1", "10.0.0.7": "10.0.0.1"}
    monkeypatch.setattr(network, "address_towards", ways.get)
    monkeypatch.setattr(network, "interface_of", {"10.0.0.1": "eth1", "127.0.0.1": "lo"}.get)
    place = Place(0, 4, 0, 2, "node0:29500", "xvlm")
    assert chosen(place, Store("127.0.0.1", "", "10.0.0.7")) == "eth1"
    assert chosen(place, Store("127.0.0.1", "", "")) is None, "gloo decides"


def test_a_name_that_leads_nowhere_has_no_address() -> None:
    assert address_towards("no-such-host.invalid") is None
    assert interface_of("192.0.2.1") is None


@linux
@pytest.mark.skipif(shutil.which("ip") is None, reason="compares with the command ip")
def test_interfaces_are_those_that_ip_tells() -> None:
    said = subprocess.run(["ip", "-j", "address"], capture_output=True, text=True, check=True)
    seen = set()
    for interface in json.loads(said.stdout):
        for family in ("inet", "inet6"):
            for found in [a for a in interface["addr_info"] if a["family"] == family][:1]:
                seen.add(family)
                assert interface_of(found["local"]) == interface["ifname"]
    assert "inet" in seen


@linux
def test_ipv6_has_a_way_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert address_towards("::1") == "::1"
    assert interface_of("::1") == "lo"
