"""A whole group in one process: lockd's core and many clients' cores over a seeded network, clock and disk.

One seed draws everything: who joins when, what each does, how long each message takes. `plan` draws it,
`group` runs it, `watch` checks the invariants after every step, `judge` asks the verdict at the end.
"""
