"""Dockerfile text to typed values.

Nothing here reads files, the environment or the network (except the grammar's own
``dockerfile.lark``), and nothing here knows how a build is run. The way in is
``grammar.parse.parse``; importing this package alone loads neither lark nor the grammar.
"""
