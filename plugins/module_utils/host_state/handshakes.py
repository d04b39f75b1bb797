"""What a TLS port of this host accepts and shows, by shaking hands with it."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import time
from typing import Any

from ansible_collections.waffle.iron.plugins.module_utils.host_state.parsing import Facts
from ansible_collections.waffle.iron.plugins.module_utils.host_state.reading import Unreadable


def shake(port: int, name: str, version: ssl.TLSVersion, ciphers: str = "") -> tuple[str, bytes]:
    """Return the cipher and the certificate of one handshake; raise `OSError` if it is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers or "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=name or None) as stream,
    ):
        cipher = stream.cipher()
        return (cipher[0] if cipher else "none"), stream.getpeercert(binary_form=True) or b""


def handshakes(port: int, name: str) -> Facts:
    """Return the protocols that a port accepts; for TLS 1.2 every cipher, in the server's order."""
    found = {}
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        accepted: list[str] = []
        with contextlib.suppress(OSError):  # refused: the end of the list
            while True:
                less = "".join(f":!{cipher}" for cipher in accepted)
                cipher, _ = shake(port, name, version, f"ALL:COMPLEMENTOFALL:@SECLEVEL=0{less}")
                if cipher in accepted:
                    break
                accepted.append(cipher)
        found[version.name.replace("_", ".")] = " ".join(accepted) or "refused"
    return found


def certificate_of(port: int, name: str) -> dict[str, Any]:
    """Return names, issuer and key of the certificate that a port shows, and the days until it ends."""
    try:
        _, certificate = shake(port, name, ssl.TLSVersion.TLSv1_3)
    except OSError:
        try:
            _, certificate = shake(port, name, ssl.TLSVersion.TLSv1_2)
        except OSError as error:
            raise Unreadable(f"nothing shakes hands on port {port}: {error}") from None
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-issuer", "-enddate", "-text"],
        input=certificate,
        capture_output=True,
        check=True,
    )
    return certificate_facts(done.stdout.decode(errors="replace"), time.time())


def certificate_facts(text: str, now: float) -> dict[str, Any]:
    """Return the facts in the words of ``openssl x509``; ``now`` is in seconds since 1970."""
    ends = re.search(r"^notAfter=(.+)$", text, re.MULTILINE)
    names = re.search(r"Subject Alternative Name:.*\n\s*(.+)", text)
    issuer = re.search(r"^issuer=(.+)$", text, re.MULTILINE)
    key = re.search(r"Public Key Algorithm: (\S+)\n\s*Public-Key: \((.+?)\)", text)
    return {
        "names": names[1].strip() if names else "none",
        "issuer": issuer[1].strip() if issuer else "none",
        "key": f"{key[1]}, {key[2]}" if key else "unknown",
        "days": int((ssl.cert_time_to_seconds(ends[1]) - now) // 86400) if ends else None,
    }
