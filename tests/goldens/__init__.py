"""
What users, their files and other servers depend on, as it was when it was recorded.

A golden changes only when what it records is meant to change for users; then `python -m tests.goldens` writes it anew, the
difference is read like code, and the changelog says what happens to files and requests of before.
"""
