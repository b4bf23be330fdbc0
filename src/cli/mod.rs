//! x
mod demo;
type Ended = Result<std::process::ExitCode, Box<dyn std::error::Error>>;
pub(crate) fn main() -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
