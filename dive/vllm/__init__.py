"""DIVE adapters inside vLLM: a plugin for its servers, and its engine for dive's reports.

Nothing here imports vLLM before it is used.
"""

from dive import face

__getattr__ = face(
    __name__,
    {
        "Exported": "export",
        "architecture": "export",
        "export": "export",
        "register": "plugin",
        "server_arguments": "export",
    },
)
