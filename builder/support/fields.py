"""The values of options that are lists of fields, such as ``type=oci,dest=app.tar``."""

from __future__ import annotations

from builder.errors import UsageError


def parse_fields(text: str, option: str, bare: str = "", exact: str | None = None) -> dict[str, str]:
    """Return the values of the fields ``name=value,...`` by name; the last of equal names wins.

    Double quotes enclose a field that holds commas (RFC 4180). Names are returned in lower case,
    except those that begin with *exact*. A name without ``=`` has the value *bare*.

    Raises UsageError, which names *option*, for a field without a name. The message does not show the
    field: it may hold a secret.
    """
    import csv  # most builds have no such option

    fields: dict[str, str] = {}
    try:
        items = next(csv.reader([text]), [])
    except csv.Error as error:
        raise UsageError(f"{option}: the list of fields is malformed: {error}") from None
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError(f"{option}: a field has no name", "fields are NAME=VALUE, separated by commas")
        keeps_case = exact is not None and name.startswith(exact)
        fields[name if keeps_case else name.lower()] = value if equals else bare
    return fields
