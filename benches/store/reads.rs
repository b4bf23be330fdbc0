//! Reads in place and from another process, and the memory that a flow takes.

use crate::report::Report;
use std::error::Error;

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Box<dyn Error>> {
    let _ = report;
    Ok(())
}
