"""Every bound of Lockstep by name; units stand last in the name."""

from typing import Final

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest message accepted from the network; ZeroMQ closes a connection that sends more."""

CHANGE_BYTES_MAX: Final = 60 * 1024 * 1024
"""Longest text that one op puts into a file: a restore's, which has to fit into a message."""

TEXT_BYTES_MAX: Final = 1024 * 1024
"""Longest TEXT of one write or update, in UTF-8."""

NAME_LENGTH_MAX: Final = 64
"""Longest client name, in characters."""

FILE_NAME_BYTES_MAX: Final = 512
FILE_NAME_PART_BYTES_MAX: Final = 200
"""Longest file name and part of one, in UTF-8."""

LOCK_NAME_BYTES_MAX: Final = 512
"""Longest name of a lock without a file, in UTF-8."""

FETCH_BYTES_MAX: Final = 1024 * 1024
"""An answer to a fetch ends with the record that passes this size; the replica then asks for more."""

FETCH_POINTS_MAX: Final = 64
"""How many (seq, hash) points a fetch may offer to find the common prefix."""

SESSIONS_MAX: Final = 20_000
LOCKS_MAX: Final = 200_000
WAITERS_MAX: Final = 10_000
"""Waiters of one lock."""

SEMAPHORE_MAX: Final = 10_000
"""Largest limit of a semaphore."""

ANSWERS_KEPT_MAX: Final = 64
"""How many answers lockd keeps per session, so that a repeated request gets its first answer."""

INSPECT_ROUTES_MAX: Final = 64
"""How many Inspections lockd sends within 50 ms, each along another route."""

INSPECT_LOCKS_MAX: Final = 200
INSPECT_WAITERS_MAX: Final = 50
INSPECT_REPLICAS_MAX: Final = 100
INSPECT_MEMBERS_MAX: Final = 500
INSPECT_NAMES_MAX: Final = 10
"""What one Inspection tells: locks; waiters, holders and replicas of each; members; names of a list within a line."""

FAULTS_KEPT_MAX: Final = 50
"""How many of the newest faults lockd remembers."""

QUEUE_MESSAGES_MAX: Final = 100_000
"""ZeroMQ high-water mark, per connection and direction."""

LOG_TEXT_LENGTH_MAX: Final = 120
"""A text in an event log is cut, with an ellipsis, beyond so many characters."""

AHEAD_US_MAX: Final = 10_000_000
"""A stamp so many microseconds ahead of network time is a wrong one: what it causes is not stamped behind it."""
