//! Processes of a benchmark's own that are replicas, and the words in which it talks to them.
//!
//! A benchmark starts its own program again, with a first argument that says what the process is to
//! be. The child does what lines on its standard input say, one after the other; each is answered
//! by one line. It ends with its standard input. What the lines mean is each benchmark's own
//! business.

use nearstate_store::NodeId;
use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

type Failure = Box<dyn Error>;

/// The child's side: answers the line that was read last.
pub(crate) fn answer(line: &str) -> Result<(), std::io::Error> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// The child's side: the nodes and addresses in a line of what [`Replica::peer`] gives.
pub(crate) fn book(rest: &str) -> Result<Vec<(NodeId, SocketAddr)>, Failure> {
    let peer = |peer: &str| {
        let (id, address) = peer.split_once('=').ok_or("ID=ADDRESS is wanted")?;
        Ok((NodeId(id.parse()?), address.parse()?))
    };
    rest.split_whitespace().map(peer).collect()
}

/// The benchmark's side: a replica's process, killed when dropped.
pub(crate) struct Replica {
    pub(crate) id: u64,
    address: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Replica {
    /// A process of this program that does what this first argument says, with this id and this
    /// room.
    pub(crate) fn start_as(argument: &str, id: u64, capacity: u32) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([argument.to_owned(), id.to_string(), capacity.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut replica = Self { id, address: String::new(), child, stdin, stdout };
        replica.address = replica.hear()?;
        Ok(replica)
    }

    /// As others are told where it is.
    pub(crate) fn peer(&self) -> String {
        format!("{}={}", self.id, self.address)
    }

    /// Says something; the answer is heard later.
    pub(crate) fn say(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    pub(crate) fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match line.trim_end() {
            "" => Err(format!("replica {} ended", self.id).into()),
            said => match said.strip_prefix("! ") {
                Some(error) => Err(format!("replica {}: {error}", self.id).into()),
                None => Ok(said.to_owned()),
            },
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> Result<String, Failure> {
        self.say(line)?;
        self.hear()
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.kill();
    }
}
