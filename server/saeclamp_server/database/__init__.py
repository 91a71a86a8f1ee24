"""
The database that outlasts servers: variants, uploaded vectors and fleets. Any number of processes may share it.

    connection.py  SQLite or PostgreSQL, its transactions, and the one error that all of it raises
    deadlines.py   how long it may take to answer
    watch.py       whether it does
    tables.py      the tables, as the newest migration leaves them; migrations/ makes and changes them
"""

from saeclamp_server.database.connection import Alone, Database, DatabaseError, default_url

__all__ = ["Alone", "Database", "DatabaseError", "default_url"]
