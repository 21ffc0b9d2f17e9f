"""Bytes on the wire: headers, JSON, events, codings."""
