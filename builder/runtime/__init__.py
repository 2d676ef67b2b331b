"""Containers from namespaces: one lean launcher process, one clone3 per RUN.

``host`` is the builder's side, ``launcher`` and ``init`` run in the launcher process and its
children, ``network`` wires steps to the outside. Nothing here knows images, layers or
Dockerfiles; a step is described by the plain values of ``spec``.
"""
