"""Image layouts in directories."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from builder.errors import BuildError
from builder.oci import media_types
from builder.oci.layout import Layout
from builder.oci.manifest import tagged
from cache.descriptor import Descriptor
from cache.digest import digest_of


def test_entries_replace_those_of_the_same_name(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "new"))
    assert layout.entries() == []
    first, second = (layout.put_bytes(data, media_types.MANIFEST) for data in (b"{}", b"{ }"))
    layout.add_entries([tagged(first, "a"), tagged(first, "b")])
    layout.add_entries([tagged(second, "a"), second.to_json(), second.to_json()])
    names = [(entry.tag, entry.stated_digest) for entry in layout.entries()]
    assert names[:2] == [("b", first.digest), ("a", second.digest)]
    assert json.loads((tmp_path / "new/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_blobs_are_verified(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    at = layout.put_bytes(b"some bytes", "x")
    sink = io.BytesIO()
    layout.blob(at, sink, lambda count: None)
    assert sink.getvalue() == b"some bytes" and layout.has(at.digest, at.size)
    Path(layout.blob_path(at.digest)).write_bytes(b"some bytez")
    with pytest.raises(BuildError, match="damaged"):
        layout.blob(at, io.BytesIO(), lambda count: None)
    with pytest.raises(BuildError, match="No such file"):
        layout.blob(Descriptor("x", digest_of(b"other"), 5), io.BytesIO(), lambda count: None)


@pytest.mark.parametrize("text", ["{}", "[]", '{"manifests": 3}', "{", '{"layers": []}'])
def test_a_file_that_is_no_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(BuildError, match=r"index\.json"):
        Layout(str(tmp_path)).entries()
