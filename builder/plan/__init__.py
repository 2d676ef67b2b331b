"""Convert a parsed Dockerfile to a DAG of steps. Pure: no files, no network, no store.

The planner gets configs of base images and fetched contexts from a ``planner.Resolver``.
"""
