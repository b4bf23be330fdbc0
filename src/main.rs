//! The one binary: nodes, the demo, and what looks at a running cluster.

mod ask;
mod cli;
mod demo;

fn main() -> std::process::ExitCode {
    cli::main()
}
