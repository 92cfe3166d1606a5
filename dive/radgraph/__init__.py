"""RadGraph annotations of reports: from a file, or by the `radgraph` package in its own process.

Metrics (RadGraph F1) and decisive weights both use them.
"""

from dive.radgraph.annotations import (
    NO_ENTITIES,
    Annotation,
    Annotator,
    check_annotation,
    entity_kind,
    entity_spans,
)
from dive.radgraph.file import RadGraphFile
from dive.radgraph.model import MODEL_TYPES, RadGraph
from dive.radgraph.source import annotator_of, parse_source

__all__ = [
    "MODEL_TYPES", "NO_ENTITIES", "Annotation", "Annotator", "RadGraph", "RadGraphFile",
    "annotator_of", "check_annotation", "entity_kind", "entity_spans", "parse_source",
]  # fmt: skip
