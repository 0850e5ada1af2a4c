"""The network, switched off for this Python and every kernel it starts, and every attempt written down.

Put this folder on PYTHONPATH. Loopback stays open (Jupyter needs it). `MECHLAB_NETGUARD_LOG` names the log.
"""

import os
import socket

_connect, _resolve = socket.socket.connect, socket.getaddrinfo


def _is_local(host) -> bool:
    return host is None or str(host) in ("", "localhost", "::1", "0.0.0.0") or str(host).startswith("127.")


def _refuse(host) -> None:
    log = os.environ.get("MECHLAB_NETGUARD_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{host}\n")
    raise OSError(101, f"the network is off in this test (asked for {host})")


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
        _refuse(address[0])
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    if not _is_local(host.decode() if isinstance(host, bytes) else host):
        _refuse(host)
    return _resolve(host, *args, **kwargs)


socket.socket.connect = connect
socket.getaddrinfo = getaddrinfo
