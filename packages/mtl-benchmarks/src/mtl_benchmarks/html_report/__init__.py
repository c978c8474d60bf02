"""One HTML page about finished runs that needs nothing but itself: tables, figures, protocol, environment, commands."""

from mtl_benchmarks.html_report.page import write_report

__all__ = ["write_report"]
