"""A server before a real registry that lets chosen requests go wrong, and the faults it knows."""

from __future__ import annotations

import time
from collections.abc import Callable

from faults import Answer, Asked, Exchange, Listener

# What plays a fault: the exchange, and the host of the real registry.
Fault = Callable[[Exchange, str], None]


class Faulty(Listener):
    """What stands before a real registry. ``plan`` says for each request (its number, from 0, and what
    it is) which fault it meets, or None. Tokens are given to everybody.
    """

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = upstream
        self.plan: Callable[[int, Asked], Fault | None] = lambda number, asked: None
        self.answer = self._answer
        self.count = 0

    def begin(self, plan: Callable[[int, Asked], Fault | None]) -> None:
        """Forget what was, and go by *plan*."""
        self.asked.clear()
        self.count = 0
        self.plan = plan

    def _answer(self, exchange: Exchange) -> None:
        if exchange.asked.route == "/token":
            exchange.send(Answer(200, {"Content-Type": "application/json"}, b'{"token": "fine"}'))
            return
        with self._lock:
            number, self.count = self.count, self.count + 1
        fault = self.plan(number, exchange.asked)
        if fault is None:
            exchange.send(exchange.forward(self.upstream))
        else:
            fault(exchange, self.upstream)


def faults(host: str) -> dict[str, tuple[Fault, bool]]:
    """Faults by name, and whether each passes if it is only met once."""
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))
    challenge = f'Bearer realm="http://{host}/token",service="x"'
    return {
        "reset": (_reset, True),
        "half-a-header": (_half_a_header, True),
        **{f"cut-{part}": (_cut(part / 9), True) for part in range(10)},
        **{str(code): (_status(code), True) for code in (408, 425, 429, 500, 502, 503, 504)},
        "429-seconds": (_status(429, Retry_After="2"), True),
        "429-date": (_status(429, Retry_After=soon), True),
        "503-seconds": (_status(503, Retry_After="7"), True),
        "401": (_status(401, WWW_Authenticate=challenge), True),
        "stall": (_stall, True),
        "stall-in-body": (_stall_in_body, True),
        "longer-length": (_length(10), True),
        "shorter-length": (_length(-10), False),
        "flipped": (_flipped, False),
        "401-bare": (_status(401), False),
        "403": (_status(403), False),
        "400": (_status(400), False),
        "501": (_status(501), False),
        "page": (_with_page, False),
        "gzip": (_squeezed, False),
        "loop": (_around, False),
    }


def _status(code: int, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange, _: exchange.send(Answer(code, named, b'{"errors": [{"code": "NO"}]}'))


def _reset(exchange: Exchange, _: str) -> None:
    exchange.reset()


def _half_a_header(exchange: Exchange, upstream: str) -> None:
    head = exchange.head(exchange.forward(upstream))
    exchange.write(head[: len(head) // 2])
    exchange._handler.wfile.flush()
    exchange.reset()


def _cut(part: float) -> Fault:
    """Break off in the body: the request's if it has one, else the answer's."""

    def play(exchange: Exchange, upstream: str) -> None:
        size = int(exchange.asked.headers.get("content-length", "0"))
        if size:
            exchange.read(int((size - 1) * part))
        else:
            answer = exchange.forward(upstream)
            body = exchange.shown(answer)
            exchange.write(exchange.head(answer) + body[: int(max(0, len(body) - 1) * part)])
            exchange._handler.wfile.flush()
        exchange.reset()

    return play


def _stall(exchange: Exchange, _: str) -> None:
    exchange.stall()


def _stall_in_body(exchange: Exchange, upstream: str) -> None:
    answer = exchange.forward(upstream)
    exchange.write(exchange.head(answer) + exchange.shown(answer)[: len(answer.body) // 2])
    exchange._handler.wfile.flush()
    exchange.stall()


def _length(difference: int) -> Fault:
    def play(exchange: Exchange, upstream: str) -> None:
        answer = exchange.forward(upstream)
        answer.headers["Content-Length"] = str(max(0, len(answer.body) + difference))
        exchange.send(answer)
        exchange.end()

    return play


def _flipped(exchange: Exchange, upstream: str) -> None:
    answer = exchange.forward(upstream)
    middle = len(answer.body) // 2
    changed = bytes(byte ^ 1 for byte in answer.body[middle : middle + 1])
    answer.body = answer.body[:middle] + changed + answer.body[middle + 1 :]
    exchange.send(answer)


def _with_page(exchange: Exchange, _: str) -> None:
    exchange.send(Answer(200, {"Content-Type": "text/html"}, b"<html><body>please log in</body></html>" * 20))


def _squeezed(exchange: Exchange, upstream: str) -> None:
    answer = exchange.forward(upstream)
    answer.headers["Content-Encoding"] = "gzip"
    exchange.send(answer)


def _around(exchange: Exchange, _: str) -> None:
    exchange.send(Answer(307, {"Location": exchange.asked.path}))
