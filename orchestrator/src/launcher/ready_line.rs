//! The one line by which a node says that it serves:
//! `ready node=<id> name=<name> listen=<address> port=<path>`.
//!
//! A child's output is not trusted: lines have a limit, and whatever is not just such a line with
//! the expected name is passed over.

use crate::inventory::ReadyNode;
use nearstate_store::NodeId;

/// Bytes of a ready line; longer lines are passed over.
pub const READY_LINE_BYTES_MAX: usize = 2048;

/// Finds the ready line in what a process prints, however it is cut.
#[derive(Debug)]
pub struct ReadyScanner {
    name: String,
    line: Vec<u8>,
    /// The present line is too long already.
    skipping: bool,
}

impl ReadyScanner {
    /// A scanner for the node of this name.
    #[must_use]
    pub const fn new(name: String) -> Self {
        Self { name, line: Vec::new(), skipping: false }
    }

    /// Takes what was printed next; the ready line, if it ends in it.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<ReadyNode> {
        let mut found = None;
        for &byte in bytes {
            if byte == b'\n' {
                if !self.skipping {
                    found = found.or_else(|| parse(&self.line, &self.name));
                }
                self.line.clear();
                self.skipping = false;
            } else if self.line.len() == READY_LINE_BYTES_MAX {
                self.skipping = true;
            } else {
                self.line.push(byte);
            }
        }
        found
    }
}

fn parse(line: &[u8], expected_name: &str) -> Option<ReadyNode> {
    let text = core::str::from_utf8(line).ok()?.strip_prefix("ready node=")?;
    let (node, text) = text.split_once(" name=")?;
    let (name, text) = text.split_once(" listen=")?;
    let (listen, port) = text.split_once(" port=")?;
    let node = NodeId(node.parse().ok().filter(|id| *id != 0)?);
    let listen = listen.parse().ok()?;
    let port = port.trim_end_matches('\r').to_owned();
    (name == expected_name).then_some(ReadyNode { node, listen, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "ready node=4 name=n2 listen=127.0.0.1:900 port=/tmp/a b\n";

    fn scan(text: &[u8], piece: usize) -> Option<ReadyNode> {
        let mut scanner = ReadyScanner::new("n2".to_owned());
        text.chunks(piece).filter_map(|bytes| scanner.feed(bytes)).next()
    }

    #[test]
    fn the_line_is_found_however_the_output_is_cut() {
        let listen = ([127, 0, 0, 1], 900).into();
        let expected = ReadyNode { node: NodeId(4), listen, port: "/tmp/a b".to_owned() };
        let text = format!("starting\n{GOOD}more\n");
        for piece in [1, 2, 7, 1000] {
            assert_eq!(scan(text.as_bytes(), piece), Some(expected.clone()), "{piece}");
        }
        let long = "x".repeat(3 * READY_LINE_BYTES_MAX);
        assert_eq!(scan(format!("{long}\n{GOOD}").as_bytes(), 100), Some(expected));
    }

    #[test]
    fn anything_else_is_passed_over() {
        let long = GOOD.trim_end().to_owned() + &"x".repeat(READY_LINE_BYTES_MAX) + "\n";
        let cases = [
            "ready\n",
            "ready node=0 name=n2 listen=127.0.0.1:900 port=p\n",
            "ready node=-1 name=n2 listen=127.0.0.1:900 port=p\n",
            "ready node=4 name=n3 listen=127.0.0.1:900 port=p\n",
            "ready node=4 name=n2 listen=nowhere port=p\n",
            "ready node=4 name=n2 port=p listen=127.0.0.1:900\n",
            "not ready node=4 name=n2 listen=127.0.0.1:900 port=p\n",
            "ready node=4 name=n2 listen=127.0.0.1:900 port=unfinished",
            &long,
        ];
        for case in cases {
            assert_eq!(scan(case.as_bytes(), 50), None, "{case}");
        }
        assert_eq!(scan(b"ready node=4 name=\xff\n", 50), None);
    }
}
