"""A server before a real registry that lets chosen requests go wrong, and the faults it knows."""

from __future__ import annotations

import time
from collections.abc import Callable

from faults import Answer, Asked, Exchange, Listener

Fault = Callable[[Exchange, Answer], None]


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
            fault(exchange, Answer())


def faults(host: str, upstream: str) -> dict[str, tuple[Fault, bool]]:
    """Faults by name, and whether each passes if it is only met once."""
    page = b"<html><body>please log in</body></html>" * 20

    def status(code: int, **headers: str) -> Fault:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return lambda exchange, _: exchange.send(Answer(code, named, b'{"errors": [{"code": "NO"}]}'))

    def reset(exchange: Exchange, _: Answer) -> None:
        exchange.reset()

    def half_a_header(exchange: Exchange, _: Answer) -> None:
        head = exchange.head(exchange.forward(upstream))
        exchange.write(head[: len(head) // 2])
        exchange._handler.wfile.flush()
        exchange.reset()

    def cut(part: float) -> Fault:
        """Break off in the body: the request's if it has one, else the answer's."""

        def play(exchange: Exchange, _: Answer) -> None:
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

    def stall(exchange: Exchange, _: Answer) -> None:
        exchange.stall()

    def stall_in_body(exchange: Exchange, _: Answer) -> None:
        answer = exchange.forward(upstream)
        exchange.write(exchange.head(answer) + exchange.shown(answer)[: len(answer.body) // 2])
        exchange._handler.wfile.flush()
        exchange.stall()

    def length(difference: int) -> Fault:
        def play(exchange: Exchange, _: Answer) -> None:
            answer = exchange.forward(upstream)
            answer.headers["Content-Length"] = str(max(0, len(answer.body) + difference))
            exchange.send(answer)
            exchange.end()

        return play

    def flipped(exchange: Exchange, _: Answer) -> None:
        answer = exchange.forward(upstream)
        middle = len(answer.body) // 2
        changed = bytes(byte ^ 1 for byte in answer.body[middle : middle + 1])
        answer.body = answer.body[:middle] + changed + answer.body[middle + 1 :]
        exchange.send(answer)

    def with_page(exchange: Exchange, _: Answer) -> None:
        exchange.send(Answer(200, {"Content-Type": "text/html"}, page))

    def squeezed(exchange: Exchange, _: Answer) -> None:
        answer = exchange.forward(upstream)
        answer.headers["Content-Encoding"] = "gzip"
        exchange.send(answer)

    def around(exchange: Exchange, _: Answer) -> None:
        exchange.send(Answer(307, {"Location": exchange.asked.path}))

    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))
    challenge = f'Bearer realm="http://{host}/token",service="x"'
    return {
        "reset": (reset, True),
        "half-a-header": (half_a_header, True),
        **{f"cut-{part}": (cut(part / 9), True) for part in range(10)},
        **{str(code): (status(code), True) for code in (408, 425, 429, 500, 502, 503, 504)},
        "429-seconds": (status(429, Retry_After="2"), True),
        "429-date": (status(429, Retry_After=soon), True),
        "503-seconds": (status(503, Retry_After="7"), True),
        "401": (status(401, WWW_Authenticate=challenge), True),
        "stall": (stall, True),
        "stall-in-body": (stall_in_body, True),
        "longer-length": (length(10), True),
        "shorter-length": (length(-10), False),
        "flipped": (flipped, False),
        "401-bare": (status(401), False),
        "403": (status(403), False),
        "400": (status(400), False),
        "501": (status(501), False),
        "page": (with_page, False),
        "gzip": (squeezed, False),
        "loop": (around, False),
    }
