"""The distribution API (distribution-spec 1.1): pulls and pushes. Only `sources` knows the store."""
