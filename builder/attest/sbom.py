"""The packages of an image as an SBOM: SPDX 2.3 or CycloneDX 1.5, in JSON.

Equal packages of an equal image give equal documents. A library writes CycloneDX. SPDX needs only three kinds
of objects, so this module writes them.
"""

from __future__ import annotations

import hashlib
import json
import re

from packageurl import PackageURL

from builder import VERSION
from builder.attest.databases import Package
from builder.attest.packages import Distribution, Found
from builder.attest.statement import Subject
from builder.support.json_types import JsonObject
from cache.digest import hex_of

SPDX, CYCLONEDX = "spdx", "cyclonedx"
PREDICATE_TYPES = {SPDX: "https://spdx.dev/Document", CYCLONEDX: "https://cyclonedx.org/bom"}
_VENDORS = {"deb": "debian", "apk": "alpine"}  # of packages in images without os-release
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9.-]+")


def sbom(found: Found, subject: Subject, form: str) -> JsonObject:
    """Return the document about *subject* in the format *form* (SPDX or CYCLONEDX)."""
    return _spdx(found, subject) if form == SPDX else _cyclonedx(found, subject)


def package_url(package: Package, distribution: Distribution) -> PackageURL:
    """Return the package URL of an installed package (ECMA-427, with the qualifiers that scanners know)."""
    namespace, qualifiers = package.namespace, dict[str, str]()
    if package.kind in _VENDORS:
        namespace = distribution.id or _VENDORS[package.kind]
        release = "-".join(part for part in (distribution.id, distribution.version) if part)
        given = {"arch": package.arch, "distro": release, "upstream": package.source}
        qualifiers = {name: value for name, value in given.items() if value}
    return PackageURL(package.kind, namespace or None, package.name, package.version, qualifiers)


def _by_url(found: Found) -> dict[str, tuple[Package, tuple[str, ...]]]:
    """Return the packages by their URLs, sorted. Python names that differ only in case are one package."""
    out: dict[str, tuple[Package, tuple[str, ...]]] = {}
    for package, paths in sorted(found.packages.items()):
        url = package_url(package, found.distribution).to_string()
        first, others = out.get(url, (package, ()))
        out[url] = first, tuple(sorted({*others, *paths}))
    return dict(sorted(out.items()))


# -- SPDX 2.3 ------------------------------------------------------------------------------


def _spdx(found: Found, subject: Subject) -> JsonObject:
    image: JsonObject = _spdx_package("SPDXRef-Image", subject.shown, subject.manifest.digest)
    image["primaryPackagePurpose"] = "CONTAINER"
    image["checksums"] = [{"algorithm": "SHA256", "checksumValue": hex_of(subject.manifest.digest)}]
    packages = []
    system = found.distribution
    if system.id:
        item = _spdx_package("SPDXRef-OperatingSystem", system.id, system.version)
        item["primaryPackagePurpose"] = "OPERATING-SYSTEM"
        packages.append({**item, "description": system.name} if system.name else item)
    for url, (package, paths) in _by_url(found).items():
        item = _spdx_package(_spdx_id(package, url), _full_name(package), package.version)
        item["sourceInfo"] = f"found in {_places(paths)}"
        item["externalRefs"] = [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}
        ]
        packages.append(item)
    document: JsonObject = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": subject.shown,
        "documentNamespace": f"urn:uuid:{subject.derived(f'spdx:{VERSION}')}",
        "creationInfo": {"created": subject.time, "creators": [f"Tool: pybuild-{VERSION}"]},
        "packages": [image, *packages],
        "relationships": [
            _spdx_relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-Image"),
            *(_spdx_relation("SPDXRef-Image", "CONTAINS", item["SPDXID"]) for item in packages),
        ],
    }
    if found.gaps:
        document["comment"] = "What follows could not be read. " + "; ".join(found.gaps)
    return document


def _spdx_package(name: str, shown: str, version: str) -> JsonObject:
    item = {
        "SPDXID": name,
        "name": shown,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "supplier": "NOASSERTION",
    }
    return item if version else {key: value for key, value in item.items() if key != "versionInfo"}


def _spdx_id(package: Package, url: str) -> str:
    """Return a readable identifier that is unique for the package."""
    shown = _NOT_IN_ID.sub("-", package.name)[:60]
    return f"SPDXRef-{package.kind}-{shown}-{hashlib.sha256(url.encode()).hexdigest()[:16]}"


def _spdx_relation(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _full_name(package: Package) -> str:
    return f"{package.namespace}/{package.name}" if package.namespace else package.name


def _places(paths: tuple[str, ...]) -> str:
    more = f" and {len(paths) - 3} more files" if len(paths) > 3 else ""
    return ", ".join(f"/{path}" for path in paths[:3]) + more


# -- CycloneDX 1.5 -------------------------------------------------------------------------


def _cyclonedx(found: Found, subject: Subject) -> JsonObject:
    from cyclonedx.model import Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot5

    image = Component(
        name=subject.shown, version=subject.manifest.digest, type=ComponentType.CONTAINER, bom_ref="image"
    )
    tool = Component(name="pybuild", version=VERSION, type=ComponentType.APPLICATION)
    components = []
    system = found.distribution
    if system.id:
        components.append(
            Component(
                name=system.id,
                version=system.version or None,
                type=ComponentType.OPERATING_SYSTEM,
                bom_ref="operating-system",
                description=system.name or None,
            )
        )
    for url, (package, paths) in _by_url(found).items():
        components.append(
            Component(
                name=package.name,
                group=package.namespace or None,
                version=package.version,
                type=ComponentType.LIBRARY,
                purl=package_url(package, system),
                bom_ref=url,
                properties=[Property(name="pybuild:found-in", value=f"/{path}") for path in paths],
            )
        )
    metadata = BomMetaData(
        component=image,
        timestamp=subject.moment,
        tools=ToolRepository(components=[tool]),
        properties=[Property(name="pybuild:not-read", value=gap) for gap in found.gaps],
    )
    document = Bom(
        serial_number=subject.derived(f"cyclonedx:{VERSION}"), metadata=metadata, components=components
    )
    document.register_dependency(image, components)
    value: JsonObject = json.loads(JsonV1Dot5(document).output_as_string())
    return value
