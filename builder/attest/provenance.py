"""How an image was built: SLSA provenance v1. docs/attestations.md describes this build type.

It has no private values of the command line: no secrets, no credentials or queries of URLs, no proxies. Only
mode max has the values of build arguments and labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from builder import VERSION
from builder.attest.statement import OURS, Subject, image_url
from builder.oci import media_types
from builder.oci.model import host
from builder.plan.graph import Plan
from builder.plan.ops import FetchGit, FetchUrl, Files, FromImage
from builder.plan.remote import context_git_ref, is_commit, is_url, redacted, without_credentials
from builder.request import STDIN, BuildRequest
from cache.digest import Digest, hex_of
from cache.layer.snapshots import manifest
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import struct

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{OURS}dockerfile:v1"
BUILDER_ID = f"{OURS}builder"
MIN, MAX = "min", "max"
_SCP = re.compile(r"(?:[^@/]*@)?([^:/]+):(?!//)(.*)", re.DOTALL)

Described = dict[str, object]


class Result(Protocol):
    """The result of a step (builder.build.solve.Solved)."""

    @property
    def key(self) -> str: ...

    @property
    def stack(self) -> tuple[str, ...]: ...


@struct
class BuildRecord:
    """The data for provenance.

    ``dockerfile`` is its path and its bytes. ``context`` is the build context if that is not a directory.
    ``results`` are those of the steps of ``plan``, by their ``id``.
    """

    request: BuildRequest
    dockerfile: tuple[str, bytes]
    context: Files | None
    plan: Plan
    results: Mapping[int, Result]


def provenance(store: Store, subject: Subject, record: BuildRecord) -> Described:
    """Return the predicate that says how *subject* was built, in the mode of the request."""
    request, context, made = record.request, record.context, record.plan
    definition: Described = {
        "buildType": BUILD_TYPE,
        "externalParameters": {
            "configSource": _config_source(request, record.dockerfile, context, store),
            "request": _request(request, str(subject.platform), request.provenance),
        },
        "internalParameters": _internal(made),
        "resolvedDependencies": _dependencies(request, context, made, record.results, store),
    }
    text = json.dumps(definition, sort_keys=True).encode()
    return {
        "buildDefinition": definition,
        "runDetails": {
            "builder": {"id": request.builder_id or BUILDER_ID, "version": {"pybuild": VERSION}},
            "metadata": {
                "invocationId": subject.derived(hashlib.sha256(text).hexdigest()).urn,
                "finishedOn": subject.time,
            },
        },
    }


# -- the request ---------------------------------------------------------------------------


def _config_source(
    request: BuildRequest, dockerfile: tuple[str, bytes], context: Files | None, store: Store
) -> Described:
    """Return the Dockerfile: its name in the context, its digest, and the URI of the context."""
    path, data = dockerfile
    if path != STDIN and request.context:
        inside = os.path.relpath(path, request.context)
        path = os.path.basename(path) if inside.startswith("..") else inside
    out: Described = {"path": path, "digest": {"sha256": hashlib.sha256(data).hexdigest()}}
    if request.remote and request.remote != STDIN:
        out["context"] = _remote(request.remote, context, store)
    return out


def _request(request: BuildRequest, platform: str, mode: str) -> Described:
    out: Described = {"platform": platform}
    if request.target:
        out["target"] = request.target
    if mode != MAX:
        return out
    arguments = {
        name: redacted(value)
        for name, value in sorted(request.build_args.items())
        if not name.lower().endswith("_proxy")
    }
    contexts = {
        name: {"kind": one.kind, **({} if one.kind in ("local", "layout") else {"value": _uri(one.value)})}
        for name, one in sorted(request.contexts.items())
    }
    given: Described = {
        "args": arguments,
        "labels": dict(sorted(request.labels.items())),
        "secrets": sorted(request.secrets),
        "ssh": sorted(request.ssh),
        "contexts": contexts,
        "network": "" if request.network == "default" else request.network,
        "allow": sorted(request.allow),
    }
    return out | {name: value for name, value in given.items() if value}


def _internal(made: Plan) -> Described:
    out: Described = {"builderPlatform": str(host())}
    if made.epoch is not None:
        out["sourceDateEpoch"] = made.epoch
    return out


# -- the dependencies ----------------------------------------------------------------------


def _dependencies(
    request: BuildRequest, context: Files | None, made: Plan, results: Mapping[int, Result], store: Store
) -> list[Described]:
    """Return base images, fetched files and repositories, and remote contexts; sorted, without duplicates."""
    found = [_base(name, image, platform, store) for name, image, platform in made.bases]
    known = {image for _, image, _ in made.bases}
    for step in made.steps:
        op = step.op
        if isinstance(op, FromImage) and op.image not in known:  # of a layout
            found.append(_image_id(op.image) | {"name": op.name})
        elif isinstance(op, FetchUrl):
            found.append(_fetched(op, results[id(step)].stack, store))
        elif isinstance(op, FetchGit):
            found.append(_repository(op, results[id(step)].key, store))
    if request.remote and request.remote != STDIN:
        found.append(_remote(request.remote, context, store))
    found += [_remote(one.value, None, store) for one in request.contexts.values() if one.kind == "url"]
    unique = {json.dumps(item, sort_keys=True): item for item in found}
    return [unique[key] for key in sorted(unique)]


def _base(name: str, image: str, platform: str, store: Store) -> Described:
    """Return a base image, by the digest of its manifest or index if that is known, else by its ID."""
    digest = parse_reference(name).digest or store.memos.pulled_digest(name, image)
    if not digest:
        return _image_id(Digest(image)) | {"uri": image_url(name, "", platform)}
    return {
        "uri": image_url(name, digest, platform),
        "digest": {"sha256": hex_of(Digest(digest))},
        "annotations": {"imageId": image},
    }


def _image_id(image: Digest) -> Described:
    return {"mediaType": media_types.CONFIG, "digest": {"sha256": hex_of(image)}}


def _fetched(op: FetchUrl, stack: tuple[str, ...], store: Store) -> Described:
    """Return the file of a URL. The file list of its layer has the digest."""
    out: Described = {"uri": _uri(op.url)}
    entries = manifest(store, stack[0]) if stack else None
    if op.checksum:
        out["digest"] = {"sha256": op.checksum.removeprefix("sha256:")}
    elif entries is not None and len(entries) == 1 and entries[0].digest:
        out["digest"] = {"sha256": entries[0].digest}
    return out


def _repository(op: FetchGit, key: str, store: Store) -> Described:
    ref = f"@{op.ref}" if op.ref else ""
    out: Described = {"uri": f"{_git_uri(op.remote)}{ref}"}
    known = [(store.memos.commit(key) or "") if key else "", op.checksum, op.ref]
    if commit := next((value for value in known if is_commit(value)), ""):
        out["digest"] = {"gitCommit": commit}
    return out


def _remote(text: str, files: Files | None, store: Store) -> Described:
    """Return a remote context."""
    if (git := context_git_ref(text)) is not None:
        return _repository(git.op(keep_git_dir=False), files.key if files is not None else "", store)
    return {"uri": _uri(text)}


def _uri(text: str) -> str:
    """Return the URL *text* without its possible secrets: the credentials and the query."""
    if not is_url(text):
        return redacted(text)
    try:
        parts = urlsplit(without_credentials(text))
    except ValueError:
        return redacted(text).partition("?")[0]
    return urlunsplit(parts._replace(query="", fragment=""))


def _git_uri(remote: str) -> str:
    """Return a repository in the syntax of SPDX's download locations."""
    if "://" not in remote and (match := _SCP.fullmatch(remote)) is not None:
        return f"git+ssh://{match[1]}/{match[2].lstrip('/')}"
    return f"git+{without_credentials(remote)}"
