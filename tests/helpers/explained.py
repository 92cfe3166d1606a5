"""Reports, and `explain` over them as the tests call it."""

from dive.page.explain import explain

TEXTS = [
    "The lungs are clear.",
    "There is a small right pleural effusion. Heart size is normal.",
    "  No pneumothorax.\n\nMild  cardiomegaly. ",
]


def look(backbone, adapter, studies, reports=None, **more):
    reports = TEXTS[: len(studies)] if reports is None else reports
    options = {"indices": range(len(studies)), "method": 0, "progress": False} | more
    return explain(backbone, adapter, studies, reports, **options)
