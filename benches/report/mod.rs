//! What all benchmarks print and write: the machine, the settings, one line a row, and the rows
//! again as JSON.
//!
//! It reads no figure and makes none; a row that cannot be measured says why, and is in the JSON
//! with that reason and without a value, so that nobody takes a missing row for a good one.

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

/// What is asked for on the command line.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Shorter runs.
    pub(crate) quick: bool,
    /// Only rows whose names begin so.
    pub(crate) only: String,
    json: Option<PathBuf>,
    /// What else was asked for, of what this benchmark alone offers.
    more: Vec<String>,
}

/// A switch that one benchmark offers: as it is written, and what it does.
pub(crate) type Switch = (&'static str, &'static str);

impl Options {
    /// What is asked of the benchmark of this name. Says what may be asked and ends the process if
    /// that is what is wanted (code 0), or if it is something else (code 2).
    pub(crate) fn read(
        bench: &str,
        switches: &[Switch],
        arguments: impl Iterator<Item = String>,
    ) -> Self {
        let more = switches.iter().map(|(name, what)| format!("\n{name}  {what}"));
        let usage = format!(
            "Usage: cargo bench --bench {bench} -- [OPTIONS]\n\n\
             --quick      shorter runs, wider spread\n\
             --only NAME  only rows whose names begin so\n\
             --json FILE  write the rows to a file as well\n\
             --help       say this{}",
            more.collect::<String>()
        );
        match Self::parse(switches, arguments) {
            Ok(Some(options)) => options,
            Ok(None) => {
                println!("{usage}");
                std::process::exit(0)
            }
            Err(wrong) => {
                eprintln!("{wrong}\n\n{usage}");
                std::process::exit(2)
            }
        }
    }

    /// The options, or nothing if help is asked for.
    fn parse(
        switches: &[Switch],
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--only" => {
                    options.only = arguments.next().ok_or("--only needs the begin of a name")?;
                }
                "--json" => {
                    options.json = Some(arguments.next().ok_or("--json needs a FILE")?.into());
                }
                // Given by cargo.
                "--bench" => {}
                "--help" | "-h" => return Ok(None),
                other if switches.iter().any(|(name, _)| *name == other) => {
                    options.more.push(argument);
                }
                other => return Err(format!("unknown option {other}")),
            }
        }
        Ok(Some(options))
    }
}

impl Options {
    /// Whether a switch of this benchmark alone was given.
    #[allow(dead_code, reason = "not every benchmark has one")]
    pub(crate) fn has(&self, switch: &str) -> bool {
        self.more.iter().any(|name| name == switch)
    }
}

struct Row {
    name: String,
    unit: &'static str,
    /// What it should be at least, if that is said.
    aim: Option<f64>,
    /// Or why there is none.
    value: Result<f64, String>,
}

/// The rows of one run.
pub(crate) struct Report {
    options: Options,
    rows: Vec<Row>,
}

impl Report {
    /// Prints the machine and the settings.
    pub(crate) fn begin(options: Options, settings: &str) -> Self {
        println!("machine: {}", machine());
        println!("settings: {settings}{}", if options.quick { ", quick" } else { "" });
        Self { options, rows: vec![] }
    }

    /// Whether runs are to be short.
    pub(crate) fn quick(&self) -> bool {
        self.options.quick
    }

    /// Whether this row is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.starts_with(&self.options.only) || self.options.only.starts_with(name)
    }

    /// Whether one of these rows is wanted.
    #[allow(dead_code, reason = "not every benchmark measures several rows at once")]
    pub(crate) fn wants_any(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.wants(name))
    }

    /// Keeps a row that its benchmark prints itself.
    pub(crate) fn keep(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.keep_beside(name, (value, unit), None);
    }

    /// Keeps a row, printed elsewhere, beside what it should be at least.
    pub(crate) fn keep_beside(
        &mut self,
        name: impl Into<String>,
        (value, unit): (f64, &'static str),
        aim: Option<f64>,
    ) {
        self.rows.push(Row { name: name.into(), unit, aim, value: Ok(value) });
    }

    /// Keeps and prints a row.
    #[allow(dead_code, reason = "not every benchmark leaves the printing to this file")]
    pub(crate) fn row(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        println!("{name:<36} {value:>12.3} {unit}");
        self.keep(name, value, unit);
    }

    /// Says why a row is not measured.
    #[allow(dead_code, reason = "not every benchmark depends on what is installed")]
    pub(crate) fn skip(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        let (name, reason) = (name.into(), reason.into());
        println!("{name:<36} {:>12} {reason}", "skipped:");
        self.rows.push(Row { name, unit: "", aim: None, value: Err(reason) });
    }

    /// Writes the rows as JSON, if that was asked for.
    pub(crate) fn finish(self) -> Result<(), Box<dyn Error>> {
        let Some(path) = &self.options.json else { return Ok(()) };
        let row = |Row { name, unit, aim, value }: &Row| match (value, aim) {
            (Ok(value), None) => serde_json::json!({"name": name, "value": value, "unit": unit}),
            (Ok(value), Some(aim)) => {
                serde_json::json!({"name": name, "value": value, "unit": unit, "aim": aim})
            }
            (Err(reason), _) => serde_json::json!({"name": name, "skipped": reason}),
        };
        let rows: serde_json::Value = self.rows.iter().map(row).collect();
        writeln!(fs::File::create(path)?, "{rows:#}")?;
        Ok(())
    }
}

/// Processor, cores, and how busy the machine is already.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    format!("{model}, {cores} cores, load {load} before")
}
