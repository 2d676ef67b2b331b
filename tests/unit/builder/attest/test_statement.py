"""Statements, and the artifacts that hold them."""

from __future__ import annotations

import hashlib
import json

from attested import IMAGE, SUBJECT

from builder.attest.statement import artifact, listing, statement
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from builder.oci.model import Platform
from cache.digest import digest_of
from cache.store import Store
from grammar.structs import replace


def test_statement() -> None:
    names = ("docker.io/library/app:1", "registry.example.com:5000/team/app:latest")
    subject = replace(SUBJECT, names=names, platform=Platform("linux", "arm", "v7"))
    value = json.loads(statement(subject, "urn:x", {"b": 1, "a": "\ud800"}))
    digest = {"sha256": hashlib.sha256(b"image").hexdigest()}
    assert value["_type"] == "https://in-toto.io/Statement/v1" and value["predicateType"] == "urn:x"
    assert value["predicate"] == {"a": "\ufffd", "b": 1}
    assert value["subject"] == [
        {"name": "pkg:docker/app@1?platform=linux/arm/v7", "digest": digest},
        {
            "name": "pkg:docker/registry.example.com:5000/team/app@latest?platform=linux/arm/v7",
            "digest": digest,
        },
    ]
    nameless = json.loads(statement(replace(SUBJECT, names=()), "urn:x", {}))
    assert [item["name"] for item in nameless["subject"]] == ["_"]
    assert replace(SUBJECT, names=()).shown == IMAGE.digest


def test_artifact(made_store: Store) -> None:
    said = statement(SUBJECT, "urn:x", {})
    item = artifact(SUBJECT, "urn:x", said)
    value = json.loads(item.body)
    assert value["artifactType"] == "application/vnd.in-toto+json"
    assert value["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    (layer,) = value["layers"]
    assert (layer["digest"], layer["size"]) == (digest_of(said), len(said))
    assert layer["annotations"] == value["annotations"] == {"in-toto.io/predicate-type": "urn:x"}
    assert value["subject"] == {"mediaType": MANIFEST_TYPE, "digest": IMAGE.digest, "size": 5}
    item.keep(made_store)
    assert made_store.read_blob(item.top.digest) == item.body
    assert [made_store.read_blob(one.digest) for one, _ in item.blobs] == [b"{}", said]
    (entry,) = listing([item])
    assert entry["digest"] == item.top.digest and entry["artifactType"] == value["artifactType"]
