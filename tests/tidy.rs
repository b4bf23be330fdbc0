//! The house rules of CONTRIBUTING.md that a program can check, over every Rust file of the
//! project.
//!
//! A ratchet: what breaks a rule stands in `EXCEPTIONS` with its reason, and an exception that is
//! no longer needed fails the test, so the list only gets shorter.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_WIDTH_MAX: usize = 100;
/// Where the code is.
const ROOTS: &[&str] =
    &["src", "store", "nf-node", "placement", "orchestrator", "tests", "benches", "examples"];
/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "misc", "helper", "helpers"];
/// Written apart, so that this file does not break the rule itself.
const UNFINISHED: &[&str] =
    &[concat!("to", "do!("), concat!("db", "g!("), concat!("unimple", "mented!(")];
/// The files that may contain `unsafe`.
///
/// The table's memory; the benchmark's allocator, which counts.
const UNSAFE_FILES: &[&str] = &["store/src/region.rs", "benches/packet_path/allocations.rs"];
/// Rule, file (and function), reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// A broken rule: its name, and where.
type Breach = (&'static str, String);

#[test]
fn the_house_rules_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = BTreeSet::new();
    let mut files = 0;
    for directory in ROOTS {
        for path in rust_files(&root.join(directory)) {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            check_file(&name, &fs::read_to_string(&path).unwrap(), &mut breaches);
            files += 1;
        }
    }
    assert!(files > 20, "only {files} files were found; has the tree moved?");
    let allowed: BTreeSet<(&str, String)> =
        EXCEPTIONS.iter().map(|&(rule, place, _)| (rule, place.to_owned())).collect();
    let mut wrong = Vec::new();
    for (rule, place) in breaches.difference(&allowed) {
        wrong.push(format!("{place}: {rule}"));
    }
    for (rule, place) in allowed.difference(&breaches) {
        wrong.push(format!("{place}: the exception from \"{rule}\" is not needed; remove it"));
    }
    for name in UNSAFE_FILES {
        let text = fs::read_to_string(root.join(name)).unwrap_or_default();
        if !has_unsafe(&text) {
            wrong.push(format!("{name}: has no unsafe code; remove it from the list"));
        }
    }
    assert!(wrong.is_empty(), "house rules are broken:\n  {}", wrong.join("\n  "));
}

/// Every Rust file below a directory, in the order of their names.
fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn check_file(name: &str, text: &str, breaches: &mut BTreeSet<Breach>) {
    let mut breach = |rule, place: String| {
        breaches.insert((rule, place));
    };
    if !text.starts_with("//!") {
        breach("a file begins with what it is (//!)", name.to_owned());
    }
    let code_lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if code_lines > FILE_LINES_MAX {
        breach("a file has at most 600 lines without its tests", name.to_owned());
    }
    if text.lines().any(|line| line.chars().count() > LINE_WIDTH_MAX) {
        breach("a line has at most 100 characters", name.to_owned());
    }
    if UNFINISHED.iter().any(|word| text.contains(word)) {
        breach("nothing is left unfinished", name.to_owned());
    }
    let stem = Path::new(name).file_stem().unwrap().to_string_lossy();
    let is_empty_name = |part: &str| EMPTY_NAMES.contains(&part);
    if is_empty_name(&stem) || name.split('/').any(is_empty_name) {
        breach("a module's name says what it is", name.to_owned());
    }
    if has_unsafe(text) && !UNSAFE_FILES.contains(&name) {
        breach("unsafe code is in the listed files only", name.to_owned());
    }
    for (function, lines) in functions(text) {
        if lines > FUNCTION_LINES_MAX {
            breach("a function has at most 70 lines", format!("{name} {function}"));
        }
    }
}

fn has_unsafe(text: &str) -> bool {
    // Written apart for the same reason as above.
    let word = concat!("uns", "afe ");
    let openings = ["{", "fn ", "impl", "extern", "trait"];
    text.lines().filter(|line| !line.trim_start().starts_with("//")).any(|line| {
        line.match_indices(word)
            .any(|(at, _)| openings.iter().any(|next| line[at + word.len()..].starts_with(next)))
    })
}

/// Names and lengths of the functions with a body. Relies on the layout that `cargo fmt` gives: a
/// body ends at the first line with nothing but a brace that stands where the function began.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = format!("{indent}}}");
        let rest = lines[first..].iter();
        let body_begins = rest.clone().position(|line| line.ends_with('{') || line.ends_with('}'));
        let declaration_ends = rest.clone().position(|line| line.ends_with(';'));
        if declaration_ends.is_some_and(|at| body_begins.is_none_or(|begins| at < begins)) {
            continue;
        }
        let length = if line.ends_with('}') { 0 } else { rest.take_while(|l| **l != end).count() };
        found.push((name.to_owned(), length + 1));
    }
    found
}

/// The name of the function that begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let at = if line.trim_start().starts_with("fn ") {
        line.find("fn ")? + 3
    } else {
        let at = line.find(" fn ")?;
        let words = line[..at].split_whitespace();
        let known = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern"];
        if !words.clone().all(|word| known.contains(&word) || word == "\"C\"") {
            return None;
        }
        at + 4
    };
    let name = &line[at..];
    Some(&name[..name.find(|c: char| !c.is_alphanumeric() && c != '_')?])
}

#[test]
fn the_checks_find_what_they_are_for() {
    let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(80));
    let bad = format!("fn f() {{}}\n{}\n{}", "x".repeat(101), long);
    let bad = format!("{bad}{}{}\n", concat!("uns", "afe {}\n"), UNFINISHED[0]);
    let mut breaches = BTreeSet::new();
    check_file("src/util/mod.rs", &bad, &mut breaches);
    assert_eq!(breaches.len(), 6, "{breaches:?}");
    breaches.clear();
    check_file("src/good.rs", "//! Good.\n\nfn f() {\n    g();\n}\n", &mut breaches);
    assert!(breaches.is_empty(), "{breaches:?}");
    let text = "impl A {\n    pub(crate) const fn one(\n        a: u8,\n    ) -> u8 {\n    \
                    a\n    }\n}\ntrait B {\n    fn two(&self) -> u8;\n    fn three(&self) {}\n}\n";
    assert_eq!(functions(text), [("one".to_owned(), 5), ("three".to_owned(), 1)]);
}
