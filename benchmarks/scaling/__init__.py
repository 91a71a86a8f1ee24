"""
What several servers cost, and how far they go.

    throughput.py  Ray Serve beside a server that is asked directly; two replicas beside one
    database.py    what servers ask of the database that they share, and what that costs it
    capacity.py    from that: how many servers it takes until something gives way, and what that is
"""
