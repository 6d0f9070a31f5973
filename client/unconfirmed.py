"""What a client has sent to lockd and gets no answer to: kept until it is known to have come. No I/O."""

from common.messages import ToLockd


class Unconfirmed:
    """Messages that lockd does not answer, in their order, each with the newest request sent before it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._messages: list[tuple[int, ToLockd]] = []
        self._answered = 0

    def keep(self, newest_request: int, message: ToLockd) -> None:
        """Keep a message that is sent now."""
        self._messages.append((newest_request, message))

    def answered(self, request: int) -> None:
        """Take in that lockd has answered a request: what was sent before that has come too.

        What an answer proves counts from the next one on. The first may have overtaken the news that its
        connection is another than the one on which the rest was lost.
        """
        while self._messages and self._messages[0][0] < self._answered:
            del self._messages[0]
        self._answered = request

    def again(self, newest_request: int) -> list[ToLockd]:
        """Return what an earlier connection may have lost, to be sent again now."""
        messages = [message for _, message in self._messages]
        self._messages = [(newest_request, message) for message in messages]
        self._answered = 0
        return messages

    def clear(self) -> None:
        """Forget all of it: its session is over."""
        self._messages.clear()
