"""The client with asyncio, written by hand. `_sync` is generated of it by `client/generate_sync.py`."""
