"""Serving: exports, mixed batches of many adapters on one backbone, the engine, and the server."""
