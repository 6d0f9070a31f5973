"""A simulation of clients that only lock: their cores beside lockd's, over a seeded network and clock, under faults.

Files and replicas are in tests/sim; here the whole of a client is client/lock_core.py, and tasks that use its locks.
"""
