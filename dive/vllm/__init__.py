"""DIVE adapters inside vLLM: a plugin for its servers, and its engine for dive's reports.

Nothing here imports vLLM before it is used.
"""

from dive import face

__getattr__ = face(
    __name__,
    {
        "Engine": "running",
        "Exported": "exported",
        "Provenance": "middleware",
        "architecture": "exported",
        "export": "exported",
        "generate": "engine",
        "iter_reports": "engine",
        "register": "plugin",
        "server_arguments": "exported",
    },
)
