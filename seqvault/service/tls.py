"""TLS of the read protocol, with the keys and certificates that gRPC is given."""

import ssl

from seqvault.errors import TlsError
from seqvault.service.tls_fault import context_trusting, fault_of_pair


def server_context(key: bytes, certificate: bytes, client_ca: bytes | None) -> ssl.SSLContext:
    """Of a server; with ``client_ca`` only clients with a certificate of it get in.

    Args:
        key, certificate, client_ca: PEM, checked by ``fault_of_server``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    fault_of_pair(context, key, certificate)
    if client_ca is not None:
        context.load_verify_locations(cadata=client_ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: bytes, key: bytes | None, certificate: bytes | None) -> ssl.SSLContext:
    """Of a client that trusts the authority ``ca``.

    Args:
        ca, key, certificate: PEM, as of ``seqvault.connect``.

    Raises:
        TlsError: they are not good.
    """
    try:
        context = context_trusting(ca)
    except (ssl.SSLError, ValueError):
        raise TlsError("ca holds no PEM certificate.") from None
    if key is not None and certificate is not None:
        wrong = fault_of_pair(context, key, certificate)
        if wrong:
            raise TlsError(f"the client's {wrong}.")
    return context
