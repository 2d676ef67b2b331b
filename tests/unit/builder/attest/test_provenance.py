"""Provenance: what it says of a build, and which secrets it leaves out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
from attested import SUBJECT
from images import Images

from builder import VERSION
from builder.attest.provenance import MAX, MIN, BuildRecord, provenance
from builder.attest.statement import image_url
from builder.plan.graph import Plan
from builder.plan.ops import FetchGit, FetchUrl, Files
from builder.plan.planner import plan
from builder.request import BuildRequest, NamedContext, Secret, Ssh
from cache.digest import Digest, SnapshotId, digest_of
from cache.entry import FILE, Entry
from cache.layer.snapshots import commit, draft
from cache.store import Store
from grammar.lint.linter import Linter, parse_checks
from grammar.parse import parse
from grammar.structs import replace


@dataclass(frozen=True)
class Solved:
    key: str
    stack: tuple[str, ...]


def planned(text: str, request: BuildRequest) -> Plan:
    file = parse(text)
    return plan(file, request, Images("base", "tool"), Linter(file, parse_checks(""), parse_ignore_none()))


def parse_ignore_none() -> Any:
    from grammar.ignore import parse_ignore

    return parse_ignore(b"")


REQUEST = BuildRequest(
    "/home/me/project",
    "/home/me/project/docker/Dockerfile",
    target="final",
    build_args={"TOKEN": "hunter2", "HTTP_PROXY": "http://me:hunter3@proxy", "URL": "https://u:hunter4@x/y"},
    labels={"a": "b"},
    secrets={"key": Secret("/home/me/.secret", "")},
    ssh={"default": Ssh("/run/agent")},
    contexts={
        "src": NamedContext("url", "https://u:hunter5@example.com/x.git#main"),
        "here": NamedContext("local", "/home/me/other"),
    },
)
COMMIT = "4b220de5058abfd01ff619c9d2ff6b09a049bea0"
TEXT = f"""FROM tool AS t
FROM base AS final
ARG TOKEN
ADD https://u:hunter6@example.com/f?token=hunter7#x /f
ADD --checksum=sha256:{"1" * 64} https://example.com/g /g
ADD https://github.com/o/r.git#{COMMIT} /r
ADD git@example.com:o/s.git#main /s
ADD https://example.com/t.git /t
COPY --from=t /x /x
RUN make
"""


def predicate(store: Store, mode: str, **changes: Any) -> dict[str, Any]:
    request = replace(REQUEST, **changes)
    made = planned(TEXT, request)
    results = {}
    for step in made.steps:
        stack: tuple[str, ...] = ()
        if isinstance(step.op, FetchUrl):
            with draft(store, ()) as written:
                stack = (commit(written, [Entry("f", FILE, 0o600, size=1, mtime=0, digest="2" * 64)]),)
        key = "k" * 64
        if isinstance(step.op, FetchGit) and "t.git" in step.op.remote:
            key = "t" * 64
            store.memos.set_commit(key, "5" * 40)
        results[id(step)] = Solved(key, stack)
    path = request.dockerfile or "Dockerfile"
    files = Files("c" * 64, SnapshotId("snapshot")) if request.remote else None
    request = replace(request, provenance=mode)
    return provenance(store, SUBJECT, BuildRecord(request, (path, b"FROM x\n"), files, made, results))


def test_provenance(made_store: Store) -> None:
    value = predicate(made_store, MIN)
    definition = value["buildDefinition"]
    assert definition["externalParameters"] == {
        "configSource": {
            "path": "docker/Dockerfile",
            "digest": {"sha256": hashlib.sha256(b"FROM x\n").hexdigest()},
        },
        "request": {"platform": "linux/amd64", "target": "final"},
    }
    base = {name: digest_of(f"docker.io/library/{name}:latest".encode())[7:] for name in ("base", "tool")}
    config = "application/vnd.oci.image.config.v1+json"
    found = {
        item["uri"]: {key: one for key, one in item.items() if key != "uri"}
        for item in definition["resolvedDependencies"]
    }
    platform = str(Images("base").resolve(*_reference())[1].platform)
    assert found == {
        f"pkg:docker/base@latest?platform={platform}": {
            "mediaType": config,
            "digest": {"sha256": base["base"]},
        },
        f"pkg:docker/tool@latest?platform={platform}": {
            "mediaType": config,
            "digest": {"sha256": base["tool"]},
        },
        "https://example.com/f": {"digest": {"sha256": "2" * 64}},
        "https://example.com/g": {"digest": {"sha256": "1" * 64}},
        f"git+https://github.com/o/r.git@{COMMIT}": {"digest": {"gitCommit": COMMIT}},
        "git+ssh://example.com/o/s.git@main": {},
        "git+https://example.com/t.git": {"digest": {"gitCommit": "5" * 40}},
        "git+https://example.com/x.git@main": {},
    }
    details = value["runDetails"]
    assert details["builder"]["version"] == {"pybuild": VERSION}
    assert details["metadata"]["finishedOn"] == "2024-05-06T07:08:09Z"
    assert value == predicate(made_store, MIN)


def _reference() -> Any:
    from builder.oci.model import host
    from grammar.reference import parse_reference

    return parse_reference("base"), host()


@pytest.mark.parametrize("mode", [MIN, MAX])
def test_no_secrets(mode: str, made_store: Store) -> None:
    """Nothing secret in either mode: credentials, queries, proxies, contents, places of this machine."""
    remote = "https://me:hunter8@example.com/context.tar?sig=hunter9"
    for changes in ({}, {"context": "", "remote": remote, "dockerfile": "d/Dockerfile"}):
        text = json.dumps(predicate(made_store, mode, **changes))
        kept = text.replace("hunter2", "") if mode == MAX else text
        assert "hunter" not in kept and "/home/" not in text and "/run/agent" not in text
        assert "PROXY" not in text
        assert ("hunter2" in text) == (mode == MAX)


def test_max(made_store: Store) -> None:
    asked_for = predicate(made_store, MAX)["buildDefinition"]["externalParameters"]["request"]
    assert asked_for == {
        "platform": "linux/amd64",
        "target": "final",
        "args": {"TOKEN": "hunter2", "URL": "https://xxxxx@x/y"},
        "labels": {"a": "b"},
        "secrets": ["key"],
        "ssh": ["default"],
        "contexts": {"here": {"kind": "local"}, "src": {"kind": "url", "value": "https://example.com/x.git"}},
    }


def test_remote_context(made_store: Store) -> None:
    made_store.memos.set_commit("c" * 64, COMMIT)
    changes = {"context": "", "remote": "https://u:p@github.com/o/r.git#main:sub", "dockerfile": ""}
    definition = predicate(made_store, MIN, **changes)["buildDefinition"]
    source = definition["externalParameters"]["configSource"]
    where = {"uri": "git+https://github.com/o/r.git@main", "digest": {"gitCommit": COMMIT}}
    assert source["path"] == "Dockerfile" and source["context"] == where
    assert where in definition["resolvedDependencies"]


def test_base_by_manifest(made_store: Store) -> None:
    """A base whose manifest is known goes by that, and its ID is told too."""
    name = "docker.io/library/base:latest"
    image = digest_of(name.encode())
    made_store.memos.set_pulled_digest(name, image, Digest(f"sha256:{'3' * 64}"))
    found = predicate(made_store, MIN)["buildDefinition"]["resolvedDependencies"]
    (base,) = [item for item in found if "base" in item["uri"]]
    assert base["digest"] == {"sha256": "3" * 64} and base["annotations"] == {"imageId": image}
    assert f"digest=sha256:{'3' * 64}" in base["uri"]
    pinned = image_url(f"example.com/a/b@sha256:{'4' * 64}", "", "linux/amd64")
    assert pinned == f"pkg:docker/example.com/a/b?digest=sha256:{'4' * 64}&platform=linux/amd64"
