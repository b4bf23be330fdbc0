//! docs/nat-clauses.md, docs/nat-cases.md and docs/bad-inputs.md are whole and true as far as a
//! program can tell: every clause stands in the first once and every bad input in the last, every
//! test that they name exists, and every test of a bad input is named.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The clauses of each RFC. The letters are those of its list of requirements; of those of NAT64,
/// which number none, sections, and letters of ours where one asks for several things.
const CLAUSES: &[(&str, &str)] = &[
    ("4787", "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a"),
    ("5382", "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 9 10"),
    ("5508", "1 1a 2 3 3a 3b 3c 3d 4 5 6 7 7a 8 9 10 11"),
    ("6888", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
    ("7857", "1 2 3 4 5 6 7 8 9 10 11 12 13"),
    ("6052", "2.1 2.2 2.3 2.4 3.1 4.1"),
    (
        "6146",
        "3.1 3.2 3.4 3.4f 3.5 3.5.1 3.5.1.1 3.5.2 3.5.2v 3.5.3 3.5.4 3.6.1 3.6.2 3.7 3.8 4 5.3",
    ),
    ("7915", "4 4.1 4.1h 4.1m 4.2 4.2e 4.3 4.4 4.5 4.5p 4.6 5 5.1 5.1.1 5.2 5.3 5.4 5.5 5.6 6"),
];

/// A row of one of the tables.
struct Row {
    rfc: String,
    clause: String,
    status: String,
    how: String,
}

fn rows(text: &str) -> Vec<Row> {
    let mut rfc = String::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## RFC ") {
            rfc = heading.chars().take_while(char::is_ascii_digit).collect();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, clause, _, _, status, how, _] = cells[..] else { continue };
        if clause.starts_with(|c: char| c.is_ascii_digit()) {
            rows.push(Row {
                rfc: rfc.clone(),
                clause: clause.to_owned(),
                status: status.to_owned(),
                how: how.to_owned(),
            });
        }
    }
    rows
}

/// The names in backticks that can be names of tests: two words or more.
fn named(how: &str) -> impl Iterator<Item = &str> {
    let quoted = how.split('`').skip(1).step_by(2);
    quoted.filter(|name| name.contains('_'))
}

/// The names of all tests of the project.
fn tests(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                tests(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= line.starts_with("#[test]");
                if let Some(name) = line.strip_prefix("fn ")
                    && core::mem::take(&mut is_test)
                {
                    found.insert(name.chars().take_while(|c| *c != '(').collect());
                }
            }
        }
    }
}

#[test]
fn every_clause_stands_once_and_every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/nat-clauses.md")).unwrap();
    let rows = rows(&text);
    for (rfc, clauses) in CLAUSES {
        let there = rows.iter().filter(|row| row.rfc == *rfc).map(|row| row.clause.as_str());
        assert_eq!(there.collect::<Vec<_>>().join(" "), *clauses, "clauses of RFC {rfc}");
    }
    assert_eq!(rows.len(), CLAUSES.iter().map(|(_, list)| list.split(' ').count()).sum());
    let mut all = BTreeSet::new();
    tests(root, &mut all);
    assert!(all.len() > 300, "only {} tests were found; has the tree moved?", all.len());
    for name in named(&text) {
        assert!(all.contains(name), "docs/nat-clauses.md names {name}, which is no test");
    }
    for Row { rfc, clause, status, how } in &rows {
        let place = format!("RFC {rfc} clause {clause}");
        match status.as_str() {
            "done" => assert!(named(how).next().is_some(), "{place}: no test holds it"),
            "exception" => assert!(how.len() > 10, "{place}: an exception has a reason"),
            "not done" => {}
            other => panic!("{place}: '{other}' is no status"),
        }
    }
}

#[test]
fn every_case_that_is_covered_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/nat-cases.md")).unwrap();
    let mut all = BTreeSet::new();
    tests(root, &mut all);
    let mut cases = 0;
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, case, status, how, _] = cells[..] else { continue };
        match status {
            "covered" => assert!(named(how).next().is_some(), "{case}: no test covers it"),
            "not covered" => assert!(how.len() > 10, "{case}: why not?"),
            _ => continue,
        }
        cases += 1;
        for name in named(how) {
            assert!(all.contains(name), "{case}: {name} is no test");
        }
    }
    assert!(cases > 30, "{cases} cases were found");
}

/// The bad inputs that are for a NAT, a firewall and a balancer.
const BAD_INPUTS: core::ops::RangeInclusive<usize> = 1..=61;

/// Statuses of a bad input that tests hold, if one of these stands there, or both.
const HELD: [&str; 2] = ["dropped", "handled"];

#[test]
fn every_bad_input_stands_once_and_every_test_of_one_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/bad-inputs.md")).unwrap();
    let mut all = BTreeSet::new();
    tests(root, &mut all);
    let mut numbers = vec![];
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, number, _, done, status, how, _] = cells[..] else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        numbers.push(number);
        if status == "not here" {
            assert!(how.len() > 10, "{number}: why not?");
        } else {
            assert!(status.split(", ").all(|status| HELD.contains(&status)), "{number}: {status}");
            assert!(!done.is_empty() && named(how).next().is_some(), "{number}: no test holds it");
        }
        for name in named(how) {
            assert!(all.contains(name), "bad input {number}: {name} is no test");
        }
    }
    assert_eq!(numbers, BAD_INPUTS.collect::<Vec<_>>());
    let named: BTreeSet<&str> = named(&text).collect();
    let is_of_one = |name: &&String| {
        let number = name.strip_prefix("bad_inputs_").or(name.strip_prefix("bad_input_"));
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
    };
    for name in all.iter().filter(is_of_one) {
        assert!(named.contains(name.as_str()), "docs/bad-inputs.md does not name {name}");
    }
}

#[test]
fn what_is_wrong_with_a_table_is_seen() {
    let text = "## RFC 1: x\n|clause|level|a|status|b|\n| 1 | MUST | x | done | `a_b_c` `x` |\n";
    let rows = rows(text);
    assert_eq!((rows.len(), rows[0].rfc.as_str(), rows[0].status.as_str()), (1, "1", "done"));
    assert_eq!(named(&rows[0].how).collect::<Vec<_>>(), ["a_b_c"]);
}
