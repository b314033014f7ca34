"""The network interface on which the processes of a run reach each other. Imports no torch.

gloo takes the address that the machine's own name resolves to. On many machines that is the
loopback (``127.0.1.1`` in ``/etc/hosts``) or a network that the other nodes are not on; it then
fails, or waits. What certainly leads to the others is the way to the place where all meet.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Protocol

from xvlm_core.train.launch import Address, Place, restarts

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that gloo reads: the interface that it listens on."""

_SIOCGIFADDR = 0x8915  # linux/sockios.h: address of an interface


class Store(Protocol):
    """Torch's TCPStore, as far as it is used here."""

    def set(self, key: str, value: str) -> None:
        """Write."""

    def multi_get(self, keys: list[str]) -> Sequence[bytes]:
        """Read; waits for keys that are not there yet."""


def choose_interface(
    place: Place, store: Store, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Set ``GLOO_SOCKET_IFNAME`` to the interface that leads to the others, unless it is set.

    Where the way is not found (no Linux, an address that no interface has) it stays unset, and
    gloo decides. All ranks call it.

    Args:
        place: of this process.
        store: of the run.
        environ: is changed.
    """
    assert place.master is not None
    mine = address_towards(Address.parse(place.master).host)
    store.set(_key(place.rank), mine or "")
    if environ.get(GLOO_INTERFACE):
        return
    if place.nodes > 1 and (mine is None or _is_loopback(mine)):
        # on its own machine the name of the master may be that of the loopback: there the others'
        # addresses show the way
        keys = [_key(rank) for rank in range(place.world_size) if rank != place.rank]
        others = [answer.decode() for answer in store.multi_get(keys)]
        other = next((text for text in others if text and not _is_loopback(text)), None)
        mine = None if other is None else address_towards(other)
    name = None if mine is None else interface_of(mine)
    if name is not None:
        environ[GLOO_INTERFACE] = name


def _key(rank: int) -> str:
    return f"xvlm/address/{restarts()}/{rank}"


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def address_towards(host: str) -> str | None:
    """This machine's address on the way to a host; None: there is no way. Sends nothing."""
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, 9, type=socket.SOCK_DGRAM
        ):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(address)  # of a datagram socket: picks the route, no more
                return str(probe.getsockname()[0]).partition("%")[0]
    return None


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address, such as ``eth0``; None: not found."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 4 and wanted.is_loopback:
        wanted = ipaddress.ip_address("127.0.0.1")  # that of all 127.x.x.x
    return next((name for name, found in _addresses() if found == wanted), None)


def _addresses() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Interfaces of this machine and their addresses, as far as Linux tells."""
    found: list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]] = []
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # an interface without an address
                    asked = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)
                    found.append((name, ipaddress.IPv4Address(answer[20:24])))
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            number, *_, name = line.split()
            found.append((name, ipaddress.IPv6Address(int(number, 16))))
    return found
