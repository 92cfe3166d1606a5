"""The page of `dive report`: references beside the reports of several methods, in one file.

data = build_page(studies, [Predictions("DIVE", records)])
write_page(Path("report.html"), data)
"""

from dive.page.films import FilmOptions
from dive.page.json_file import write_json
from dive.page.page_data import build_page, worst_first
from dive.page.predictions import Predictions
from dive.page.render import write_page
from dive.page.schema import PageData, Training
from dive.page.training_log import LOG_FILE, training_of

__all__ = [
    "LOG_FILE",
    "FilmOptions",
    "PageData",
    "Predictions",
    "Training",
    "build_page",
    "training_of",
    "worst_first",
    "write_json",
    "write_page",
]
