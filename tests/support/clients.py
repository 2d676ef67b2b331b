"""A client of one registry that neither waits nor spreads its requests."""

from __future__ import annotations

from faults import Answer, Exchange

from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.transport import Transport

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def client(host: str, credentials: Credentials | None = None, patience: float = 10.0) -> Registry:
    transport = Transport(host, "http", sleep=lambda _: None, jitter=lambda: 1.0, patience=patience)
    return Registry(host, transport=transport, credentials=credentials)


def good(exchange: Exchange) -> None:
    """Answer with an empty manifest."""
    exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))
