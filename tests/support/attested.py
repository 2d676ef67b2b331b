"""An image to attest, and the packages that are found in it."""

from __future__ import annotations

from builder.attest.databases import Package
from builder.attest.packages import Distribution, Found
from builder.attest.statement import Subject
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from builder.oci.model import Platform
from cache.descriptor import Descriptor
from cache.digest import digest_of

IMAGE = Descriptor(MANIFEST_TYPE, digest_of(b"image"), 5)
SUBJECT = Subject(
    ("registry.example.com/team/app:1",), IMAGE, Platform("linux", "amd64"), "2024-05-06T07:08:09.123456Z"
)
PACKAGES = {
    Package("apk", "", "musl", "1.2.4-r2", "x86_64"): ("lib/apk/db/installed",),
    Package("deb", "", "libstdc++6", "1:12~rc1+b2", "amd64", "gcc-12"): ("var/lib/dpkg/status",),
    Package("npm", "@babel", "core", "7.0.0"): tuple(f"node_modules/{n}/package.json" for n in range(5)),
    Package("pypi", "", "Flask_Thing", "2"): ("site-packages/a/METADATA",),
    Package("pypi", "", "flask-thing", "2"): ("site-packages/b/METADATA",),
    Package("pypi", "", "caf\ufffd\"'<x>&\u202f".replace("\u202f", ""), "1%2F/..#?@"): ("x\ufffd",),
}
FOUND = Found(Distribution("debian", "12", "Debian GNU/Linux 12 (bookworm)"), PACKAGES, ())
