"""The distribution API (distribution-spec 1.1), anonymous pulls. Nothing here knows the store."""
