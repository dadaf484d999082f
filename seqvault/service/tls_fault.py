"""Diagnoses failed TLS connections: errors of gRPC rarely say which part is wrong."""

import os
import re
import socket
import ssl
import tempfile
from contextlib import suppress

SECONDS = 2.0  # that the server may take to answer
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH
_EXPIRED = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED


def fault_of_client(
    target: str, ca: bytes | None, key: bytes | None, certificate: bytes | None
) -> str:
    """What is wrong with the TLS of a connection, "" if nothing that can be told.

    Connects to the server once, so it is asked only after a connection failed.

    Args:
        target: ``host:port``.
        ca, key, certificate: as of ``seqvault.connect``.
    """
    place = re.fullmatch(r"\[?(.+?)\]?:(\d+)", target)
    if place is None:
        return ""
    host, port = place[1], int(place[2])
    if ca is None:
        return _fault_of_plain(host, port)
    try:
        context = context_trusting(ca)
    except (ssl.SSLError, ValueError):
        return "ca holds no PEM certificate; give the one of the authority that signed the server's"
    context.set_alpn_protocols(["h2"])
    if key is not None and certificate is not None:
        wrong = fault_of_pair(context, key, certificate)
        if wrong:
            return f"the client's {wrong}"
    try:
        with (
            socket.create_connection((host, port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            if _is_refused(secure):
                return _of_certificate(certificate is not None)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _WRONG_NAME:
            return f"the server's certificate is for other names than {host}; use one of those"
        if error.verify_code in _EXPIRED:
            return "the server's certificate has expired, or is not valid yet"
        return "the server shows a certificate that is not of the authority given as ca"
    except ssl.SSLError as error:
        return _fault_of_handshake(error, certificate is not None)
    except OSError:
        return ""  # it is not there, or too slow to tell
    return ""


def _is_refused(secure: ssl.SSLSocket) -> bool:
    """Whether the server disconnects after the handshake.

    With TLS 1.3 that is when it refuses a missing or unknown client certificate."""
    try:
        secure.sendall(_PREFACE)
        return not secure.recv(1)
    except ConnectionError:
        return True


def _of_certificate(is_given: bool) -> str:
    if is_given:
        return "the server does not take the client's certificate: is it of its authority?"
    return "the server asks for the client's certificate: give key and certificate"


def _fault_of_plain(host: str, port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError):
        with (
            socket.create_connection((host, port), SECONDS) as plain,
            context.wrap_socket(plain),
        ):
            pass
        return "the server speaks TLS and the client does not: give the authority's certificate, ca"
    return ""


def _fault_of_handshake(error: ssl.SSLError, has_certificate: bool) -> str:
    reason = str(error.reason or error).upper()
    if "CERTIFICATE" in reason or "UNKNOWN_CA" in reason or "HANDSHAKE_FAILURE" in reason:
        return _of_certificate(has_certificate)
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason or "UNEXPECTED_EOF" in reason:
        return "the client speaks TLS and the server does not: leave ca out, or start it with TLS"
    return f"the TLS handshake failed ({error.reason})"


def context_trusting(ca: bytes) -> ssl.SSLContext:
    """Context of a client that trusts an authority, by the rules that gRPC goes by.

    Python 3.13 asks more of certificates (``VERIFY_X509_STRICT``): an authority that lacks a key
    identifier, say, would be good for gRPC and refused beside it.

    Raises:
        ssl.SSLError, ValueError: ``ca`` holds no PEM certificate.
    """
    context = ssl.create_default_context(cadata=ca.decode("ascii"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def fault_of_pair(context: ssl.SSLContext, key: bytes, certificate: bytes) -> str:
    """What is wrong with a key and its certificate, "" if nothing; the context gets them."""
    with tempfile.TemporaryDirectory(prefix="seqvault-tls-") as folder:
        paths = {}
        for name, content in (("certificate", certificate), ("key", key)):
            paths[name] = os.path.join(folder, name)
            fd = os.open(paths[name], os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
        try:
            context.load_cert_chain(paths["certificate"], paths["key"], password="")
        except ssl.SSLError as error:
            if "MISMATCH" in str(error.reason):
                return "key is not the one of the certificate"
            if b"-----BEGIN CERTIFICATE" not in certificate:
                return "certificate is not PEM"
            if b"PRIVATE KEY-----" not in key:
                return "key is not PEM"
            return f"key or certificate cannot be read ({error.reason or 'damaged PEM'})"
        except (OSError, ValueError):
            return "key or certificate cannot be read (is the key encrypted?)"
    return ""


def fault_of_server(key: bytes, certificate: bytes, client_ca: bytes | None) -> str:
    """What is wrong with what a server is started with, "" if nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrong = fault_of_pair(context, key, certificate)
    if not wrong and client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError):
            return "the clients' authority is not a PEM certificate"
    return wrong
