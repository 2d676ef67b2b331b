"""RUN --mount: each type's options, defaults and refusals."""

from __future__ import annotations

import pytest

from grammar.errors import DockerfileError
from grammar.mounts import Bind, Cache, Mount, Secret, Ssh, Tmpfs, parse_mount
from grammar.span import Span

SPAN = Span(3, 3)


def parsed(text: str) -> Mount:
    return parse_mount(text, SPAN, lambda value: value.replace("$X", "expanded"))


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("target=/t", Bind("/t", "", "", True)),
        ("type=bind,from=a,source=s,dst=/t,rw", Bind("/t", "a", "s", False)),
        ("TYPE=Bind,destination=$X,ro=false", Bind("expanded", "", "", False)),
        ("type=cache,target=/t", Cache("/t", "", "", False, "", "shared", None, None, None)),
        (
            "type=cache,target=/t,id=i,sharing=LOCKED,mode=0700,uid=1,gid=2,from=a,src=/s,readonly",
            Cache("/t", "a", "/s", True, "i", "locked", 0o700, 1, 2),
        ),
        ("type=tmpfs,target=/t", Tmpfs("/t", 0, False)),
        ("type=tmpfs,target=/t,size=1.5k", Tmpfs("/t", 1536, False)),
        ("type=secret,id=i", Secret("", "i", "", None, False, None, None, None)),
        (
            "type=secret,id=i,env=E,required,mode=0444,uid=0",
            Secret("", "i", "", "E", True, 0o444, 0, None),
        ),
        ("type=ssh", Ssh("", "", False, None, None, None)),
        ("type=ssh,id=i,required=true,target=/s", Ssh("/s", "i", True, None, None, None)),
        ('type=bind,"target=/a,b"', Bind("/a,b", "", "", True)),
    ],
)
def test_types(text: str, mount: Mount) -> None:
    assert parsed(text) == mount


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=volume", 'unsupported mount type "volume"'),
        ("type=cahce", "did you mean cache"),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("tagret=/t", r"unexpected key 'tagret' in 'tagret=/t' \(did you mean target\?\)"),
        ("type=bind,size=1m,target=/t", "unexpected key 'size' for mount type 'bind'"),
        ("type=ssh,env=E", "unexpected key 'env' for mount type 'ssh'"),
        ("type=cache,target=/t,sharing=all", 'unsupported sharing value "all"'),
        ("type=bind,target=/t,sharing=shared", "invalid cache sharing set for bind mount"),
        ("type=bind,target=/t,mode=1", 'mode not allowed for "bind" type mounts'),
        ("type=cache,target=/t,mode=8", "invalid value 8 for mode"),
        ("type=cache,target=/t,uid=-1", "invalid value -1 for uid"),
        ("type=cache,target=/t,gid=4294967296", "invalid value 4294967296 for gid"),
        ("type=tmpfs,target=/t,size=big", "invalid value for size: big"),
        ("target=/t,ro=maybe", "invalid value for ro: maybe"),
        ("from=$X,target=/t", "'from' doesn't support variable expansion"),
        ("type=secret", "one of source, target required"),
        ("type=secret,id=a,source=b", "both source and id can't be set"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=secret,id=a,sharing=locked", "secret mount should not define sharing"),
        ('"open', "failed to parse csv mounts"),
        ("", "failed to parse csv mounts: EOF"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        parsed(text)
    assert caught.value.span == SPAN
