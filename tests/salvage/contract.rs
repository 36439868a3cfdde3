//! Options, exit status, report.
