"""Report generation: `dive.generate`, with prompts by `prompting` and decoding by `decode`."""

from dive.generation.generate_reports import generate, iter_reports
from dive.generation.report_writer import Report

__all__ = ["Report", "generate", "iter_reports"]
