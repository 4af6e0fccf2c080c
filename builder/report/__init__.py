"""The report of a build or a release: one HTML file that needs nothing else."""

from builder.report.write import FILE, Report, report, report_of_build

__all__ = ["FILE", "Report", "report", "report_of_build"]
