"""Every option of a build says how a replay treats it: a new one fails here until it is classified."""

from __future__ import annotations

import re
from pathlib import Path

import builder
from builder.cli.commands.build import parser
from builder.replay import fields as classes
from builder.replay.fields import can_be_replayed
from builder.replay.play import _ENVIRONMENT
from builder.request import BuildRequest, NamedContext, Output, Secret
from grammar.structs import fields, replace

# Options of the parser by the field of the request that they make.
OPTION_FIELDS = {
    "add_host": "sandbox",
    "allow": "allow",
    "annotation": "outputs",
    "attest": "provenance",
    "build_arg": "build_args",
    "build_context": "contexts",
    "cache_from": "cache_from",
    "cache_to": "cache_to",
    "cap_add": "sandbox",
    "cap_drop": "sandbox",
    "cgroup_parent": "sandbox",
    "context": "context",
    "cpus": "sandbox",
    "cpuset_cpus": "sandbox",
    "device": "sandbox",
    "dns": "sandbox",
    "file": "dockerfile",
    "iidfile": "iidfile",
    "insecure_registry": "client",
    "jobs": "jobs",
    "label": "labels",
    "load": "outputs",
    "memory": "sandbox",
    "metadata_file": "metadata_file",
    "network": "network",
    "no_cache": "no_cache",
    "no_cache_filter": "no_cache_stages",
    "output": "outputs",
    "pids_limit": "sandbox",
    "platform": "platforms",
    "provenance": "provenance",
    "pull": "pull",
    "push": "outputs",
    "quiet": "quiet",
    "sbom": "sbom",
    "secret": "secrets",
    "security_opt": "sandbox",
    "shm_size": "sandbox",
    "ssh": "ssh",
    "tag": "tags",
    "target": "target",
    "timeout": "client",
    "ulimit": "sandbox",
}
WITHOUT_EFFECT = {"help", "version", "rm", "force_rm"}
# Variables of the environment that a build reads, besides those in the key of a record.
ENVIRONMENT = {
    "COLUMNS": "how wide help is",
    "CONTAINERS_REGISTRIES_CONF": "registries are not asked in a replay",
    "DOCKER_CONFIG": "credentials, and proxies, which are in no key",
    "DOCKER_HOST": "outputs are not replayed",
    "REGISTRY_AUTH_FILE": "registries are not asked in a replay",
    "SSH_AUTH_SOCK": "builds with --ssh are not replayed",
    "PYBUILD_ISOLATION": "as --isolation",
    "PYBUILD_DEBUG": "replay prints debug lines too",
    "USER": "which ids a user may map",
    "XDG_RUNTIME_DIR": "where credentials are",
}
_READ = re.compile(r"""environb?(?:\.get\(|\[)b?"(\w+)"|getenv\("(\w+)\"""")


def test_every_field_of_a_request_is_classified_once() -> None:
    """KEYED, REPEATED and NEVER share the fields of BuildRequest among them."""
    tables = [set(classes.KEYED), set(classes.REPEATED), set(classes.NEVER)]
    assert set.union(*tables) == set(fields(BuildRequest(context="/c", dockerfile="")))
    assert sum(map(len, tables)) == len(set.union(*tables))


def test_every_option_is_classified() -> None:
    """An option makes a field of the request, stands in OTHER_OPTIONS, or has no effect."""
    options = {action.dest for action in parser()._actions}
    assert options == set(OPTION_FIELDS) | set(classes.OTHER_OPTIONS) | WITHOUT_EFFECT
    assert set(OPTION_FIELDS.values()) <= set(fields(BuildRequest(context="/c", dockerfile="")))


def test_every_variable_of_the_environment_is_classified() -> None:
    """A variable that the program reads is in the key of a record, or does not matter to a replay."""
    top = Path(builder.__file__).parent.parent
    read = set()
    for package in ("builder", "cache", "grammar"):
        for path in (top / package).rglob("*.py"):
            for names in _READ.findall(path.read_text(encoding="utf-8")):
                read |= set(filter(None, names))
    assert read <= set(ENVIRONMENT) | set(_ENVIRONMENT), "classify it here or in builder/replay/play.py"


def test_what_is_never_replayed() -> None:
    """Builds with effects outside the store, and builds that ask servers, leave no record."""
    plain = BuildRequest(context="/c", dockerfile="/c/Dockerfile", tags=("t",), jobs=2)
    assert can_be_replayed(plain)
    changes: list[dict[str, object]] = [
        {"no_cache": True},
        {"no_cache_stages": frozenset({"a"})},
        {"outputs": (Output("oci", "/o"),)},
        {"pull": "always"},
        {"pull": "newer"},
        {"remote": "https://x"},
        {"secrets": {"s": Secret(file="/s")}},
        {"contexts": {"c": NamedContext("local", "/d")}},
        {"metadata_file": "/m"},
        {"platforms": ("linux/arm64",)},
        {"sbom": "spdx"},
        {"dockerfile": "-"},
    ]
    for change in changes:
        assert not can_be_replayed(replace(plain, **change)), change
