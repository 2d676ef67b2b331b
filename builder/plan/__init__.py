"""From a parsed Dockerfile to a DAG of steps. Pure: no files, no network, no store.

What a plan needs of the world (the config of a base image) it asks an ImageResolver for.
"""
