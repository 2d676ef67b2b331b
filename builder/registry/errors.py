"""Errors of registries.

RegistryError       root; a BuildError
    NotFound        no such repository or reference
    Unauthorized    the registry wants credentials
    Unavailable     it cannot be reached, or keeps failing
    Untrusted       it answered something that must not be used
    Blocked         the configuration forbids to use it
"""

from __future__ import annotations

from builder.errors import BuildError


class RegistryError(BuildError):
    """A registry did not give what was requested."""

    code = "E-REGISTRY"


class NotFound(RegistryError):
    """The registry answered 404."""

    code = "E-REGISTRY-NOT-FOUND"


class Unauthorized(RegistryError):
    """The registry answered 401 or 403, also with a token."""

    code = "E-REGISTRY-AUTH"


class Unavailable(RegistryError):
    """No connection, or transient failures for as long as ``--timeout`` allows."""

    code = "E-REGISTRY-UNAVAILABLE"


class Untrusted(RegistryError):
    """A wrong digest or size, an unsafe redirect, a body that contradicts its headers."""

    code = "E-REGISTRY-UNTRUSTED"


class Blocked(RegistryError):
    """registries.conf forbids it."""

    code = "E-REGISTRY-BLOCKED"
