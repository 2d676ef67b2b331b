"""A web application of one page."""

import os

from bottle import route, run


@route("/")
def index() -> str:
    """What the sample's test asks for."""
    return "built by pybuild\n"


run(host="0.0.0.0", port=int(os.environ["PORT"]), quiet=True)
