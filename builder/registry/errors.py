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
    """A registry could not give what was asked of it."""


class NotFound(RegistryError):
    """404."""


class Unauthorized(RegistryError):
    """401 or 403 that a token did not cure."""


class Unavailable(RegistryError):
    """No connection, or transient failures until the budget was spent."""


class Untrusted(RegistryError):
    """A wrong digest or size, an unsafe redirect, a body that contradicts its headers."""


class Blocked(RegistryError):
    """registries.conf forbids it."""
