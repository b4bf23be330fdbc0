//! The test's side: three nodes in processes of their own, and what is done to them.
//!
//! Only processes that were started here are signalled, by their ids, and only while they have not
//! been waited for, so that the ids are theirs. A fault counts if every node answered clients since
//! the fault before, if the one that it hits said that it owns a shard just before, and if the
//! system says that the signal took effect.

#![expect(clippy::disallowed_methods, reason = "tests own processes and time")]

use crate::dice::Dice;
use crate::record::{Record, Recorder, SHARDS, path_of};
use crate::replica::{Failure, MARK, VARIABLE, region_path};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Timing;
use nearstate_store::{NodeId, ShardId, Time};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Nodes at any time.
const NODES: usize = 3;
/// Operations that each node has to answer before a fault, the load floor.
const FLOOR: u64 = 50;
/// How often something is asked again that may fail while owners change.
const TRIES: u32 = 200;
/// Between two such tries, and between two looks at what has no event for another process.
const AGAIN: Duration = Duration::from_millis(5);
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A fault comes up to so much later than it could.
const DELAY_US: u64 = 60_000;

/// What is done to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; another node takes its place.
    Kill,
    /// SIGSTOP for ten lease times, then SIGCONT.
    Pause,
    /// The same, but at least until another node owns its shard and has served clients.
    LongPause,
    /// SIGSTOP for ten lease times while it hands its shard over.
    PauseInHandOver,
    /// No fault: it hands its shard over.
    HandOver,
}

/// How often what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) kills: u64,
    pub(crate) pauses: u64,
    /// Pauses after which another node owned the shard.
    pub(crate) succeeded_pauses: u64,
    pub(crate) hand_overs: u64,
}

/// A node's process, killed when dropped.
struct Process {
    id: NodeId,
    address: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Operations that it had answered when it was asked last.
    done: u64,
}

impl Process {
    fn start(id: NodeId, origin: Time, records: &Path, regions: &Path) -> Result<Self, Failure> {
        // Another cluster that forms here at the same time may get the port of a dead node.
        let lineage = origin.0;
        let places = format!("{} {}", records.display(), regions.display());
        let description = format!("{} {lineage} {places}", id.0);
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "a_node", "--ignored", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, description)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no standard input")?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut process = Self { id, address: String::new(), child, stdin, stdout, done: 0 };
        process.address = process.hear()?;
        Ok(process)
    }

    fn hear(&mut self) -> Result<String, Failure> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line)? == 0 {
                return Err(format!("{} ended by itself", self.id).into());
            }
            // The test runner says things too, also on the same line.
            let Some((_, said)) = line.trim_end().split_once(MARK) else { continue };
            return match said.strip_prefix("! ") {
                Some(error) => Err(format!("{}: {error}", self.id).into()),
                None => Ok(said.to_owned()),
            };
        }
    }

    /// Says something; the answer is heard later.
    fn say(&mut self, line: &str) -> Result<(), Failure> {
        writeln!(self.stdin, "{line}")?;
        Ok(self.stdin.flush()?)
    }

    fn ask(&mut self, line: &str) -> Result<String, Failure> {
        self.say(line)?;
        self.hear()
    }

    fn pid(&self) -> Result<Pid, Failure> {
        let pid = i32::try_from(self.child.id())?;
        Ok(Pid::from_raw(pid).ok_or("a process has an id")?)
    }

    /// SIGKILL; it is gone when this returns.
    fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        let status = self.child.wait()?;
        if status.signal() != Some(Signal::KILL.as_raw()) {
            return Err(format!("{} was not killed, it ended with {status}", self.id).into());
        }
        Ok(())
    }

    /// Sends a signal and waits until the system says that it took effect.
    fn signal(&self, signal: Signal, effect: WaitOptions) -> Result<(), Failure> {
        kill_process(self.pid()?, signal)?;
        let (_, status) = waitpid(Some(self.pid()?), effect)?.ok_or("it waits for news")?;
        if !status.stopped() && !status.continued() {
            return Err(format!("{} has ended: {status:?}", self.id).into());
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nodes that know each other. See the module's text.
pub(crate) struct Cluster {
    processes: Vec<Process>,
    records: tempfile::TempDir,
    regions: tempfile::TempDir,
    recorder: Recorder,
    next_id: u64,
    origin: Time,
    dice: Dice,
    pub(crate) faults: Faults,
}

/// Regions lie in memory where there is such a file system.
fn region_directory() -> Result<tempfile::TempDir, std::io::Error> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

fn shards() -> impl Iterator<Item = ShardId> {
    (1..=SHARDS).map(ShardId)
}

impl Cluster {
    /// Three nodes with a vote in every shard, and clients at work in all of them.
    pub(crate) fn form(seed: u64) -> Result<Self, Failure> {
        let (records, regions) = (tempfile::tempdir()?, region_directory()?);
        let recorder = Recorder::create(&path_of(records.path(), NodeId(0)))?;
        let mut cluster = Self {
            processes: Vec::new(),
            records,
            regions,
            recorder,
            next_id: 1,
            origin: boot_now(),
            dice: Dice::new(seed),
            faults: Faults::default(),
        };
        for _ in 0..NODES {
            let id = cluster.join()?;
            cluster.recorder.write(&[Record::Promoted { at: cluster.origin, node: id }]);
        }
        cluster.introduce()?;
        let voters: Vec<String> = cluster.processes.iter().map(|p| p.id.0.to_string()).collect();
        for shard in shards() {
            cluster.processes[0].ask(&format!("form {} {}", shard.0, voters.join(" ")))?;
            cluster.owner(shard, None)?;
        }
        let load = cluster.load();
        cluster.processes.iter_mut().try_for_each(|process| process.ask(&load).map(drop))?;
        Ok(cluster)
    }

    /// Where the records are.
    pub(crate) fn records(&self) -> &Path {
        self.records.path()
    }

    /// Leaves the records where they are, and says where.
    pub(crate) fn keep_records(&mut self) -> &Path {
        self.records.disable_cleanup(true);
        self.records.path()
    }

    fn load(&self) -> String {
        format!("load {}", self.origin.0)
    }

    /// Starts a node under a new id; nobody knows it yet.
    fn join(&mut self) -> Result<NodeId, Failure> {
        let id = NodeId(self.next_id);
        let (records, regions) = (self.records.path(), self.regions.path());
        self.processes.push(Process::start(id, self.origin, records, regions)?);
        self.next_id += 1;
        Ok(id)
    }

    /// Tells all nodes where the others are.
    fn introduce(&mut self) -> Result<(), Failure> {
        let peers = self.processes.iter().map(|peer| format!("{}={}", peer.id.0, peer.address));
        let line = format!("peers {}", peers.collect::<Vec<_>>().join(" "));
        self.processes.iter_mut().try_for_each(|process| process.ask(&line).map(drop))
    }

    fn process(&mut self, id: NodeId) -> Result<&mut Process, Failure> {
        let process = self.processes.iter_mut().find(|process| process.id == id);
        process.ok_or_else(|| format!("{id} is not there").into())
    }

    /// Waits until all nodes that run name the same one of them as a shard's owner.
    fn owner(&mut self, shard: ShardId, stopped: Option<NodeId>) -> Result<NodeId, Failure> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let mut named = Vec::new();
            for process in self.processes.iter_mut().filter(|p| Some(p.id) != stopped) {
                named.push(process.ask(&format!("owner {}", shard.0))?);
            }
            let owner = NodeId(named[0].split(' ').next().unwrap_or_default().parse()?);
            let is_there = self.processes.iter().any(|process| process.id == owner);
            if is_there && Some(owner) != stopped && named.iter().all(|said| *said == named[0]) {
                return Ok(owner);
            }
            std::thread::sleep(AGAIN);
        }
        Err(format!("the nodes do not agree who owns {shard}").into())
    }

    /// Waits until every node that runs has answered clients since this was called last.
    fn until_load(&mut self, stopped: Option<NodeId>) -> Result<(), Failure> {
        let began = Instant::now();
        for process in self.processes.iter_mut().filter(|p| Some(p.id) != stopped) {
            loop {
                let done: u64 = process.ask("done")?.parse()?;
                if done >= process.done + FLOOR {
                    process.done = done;
                    break;
                }
                if began.elapsed() > PATIENCE {
                    return Err(format!("clients of {} are not answered", process.id).into());
                }
                std::thread::sleep(AGAIN);
            }
        }
        Ok(())
    }

    /// At a random moment under load: an owner of a shard, which owned it just now.
    fn victim(&mut self) -> Result<(ShardId, NodeId), Failure> {
        self.until_load(None)?;
        loop {
            let shard = ShardId(1 + self.dice.below(SHARDS.into()) as u16);
            let owner = self.owner(shard, None)?;
            let delay = self.dice.below(DELAY_US);
            std::thread::sleep(Duration::from_micros(delay));
            if self.process(owner)?.ask(&format!("owns {}", shard.0))? != "0" {
                return Ok((shard, owner));
            }
        }
    }

    /// Does something to an owner, and makes good what it did.
    pub(crate) fn strike(&mut self, fault: Fault) -> Result<(), Failure> {
        let (shard, victim) = self.victim()?;
        match fault {
            Fault::Kill => self.kill(victim),
            Fault::Pause => self.pause(shard, victim, false),
            Fault::LongPause => self.pause(shard, victim, true),
            Fault::PauseInHandOver => self.pause_in_hand_over(shard, victim),
            Fault::HandOver => self.hand_over(shard, victim),
        }
    }

    fn kill(&mut self, victim: NodeId) -> Result<(), Failure> {
        self.process(victim)?.kill()?;
        self.processes.retain(|process| process.id != victim);
        for shard in shards() {
            // The others name somebody who lives.
            self.owner(shard, None)?;
            // Readers that have it mapped keep it.
            let _ = std::fs::remove_file(region_path(self.regions.path(), victim, shard));
        }
        self.faults.kills += 1;
        let new = self.join()?;
        self.introduce()?;
        self.recorder.write(&[Record::Promoted { at: boot_now(), node: new }]);
        for shard in shards() {
            self.replace(shard, victim, new)?;
        }
        let load = self.load();
        self.process(new)?.ask(&load)?;
        Ok(())
    }

    /// Lets a new node vote in the place of one that is gone, however often owners change.
    fn replace(&mut self, shard: ShardId, old: NodeId, new: NodeId) -> Result<(), Failure> {
        let mut refused = String::new();
        for _ in 0..TRIES {
            let owner = self.owner(shard, Some(new))?;
            match self.process(owner)?.ask(&format!("replace {} {} {}", shard.0, old.0, new.0)) {
                Ok(_) => return Ok(()),
                Err(error) => refused = error.to_string(),
            }
            std::thread::sleep(AGAIN);
        }
        Err(format!("{new} gets no vote in {shard}: {refused}").into())
    }

    fn pause(&mut self, shard: ShardId, victim: NodeId, long: bool) -> Result<(), Failure> {
        self.process(victim)?.signal(Signal::STOP, WaitOptions::UNTRACED)?;
        std::thread::sleep(Duration::from_millis(10 * Timing::default().lease_ms));
        if long {
            self.owner(shard, Some(victim))?;
            // What the victim remembers gets old.
            self.until_load(Some(victim))?;
        }
        let mut succeeded = false;
        for process in self.processes.iter_mut().filter(|process| process.id != victim) {
            let said = process.ask(&format!("leader {}", shard.0))?;
            succeeded |= said != victim.0.to_string() && said != "0";
        }
        self.process(victim)?.signal(Signal::CONT, WaitOptions::CONTINUED)?;
        self.faults.pauses += 1;
        self.faults.succeeded_pauses += u64::from(succeeded);
        Ok(())
    }

    /// One of the other nodes.
    fn other(&mut self, than: NodeId) -> NodeId {
        let others: Vec<NodeId> =
            self.processes.iter().map(|process| process.id).filter(|id| *id != than).collect();
        others[self.dice.below(others.len() as u64) as usize]
    }

    fn hand_over(&mut self, shard: ShardId, owner: NodeId) -> Result<(), Failure> {
        let to = self.other(owner);
        // On a busy host the owner may be another by now.
        let asked = self.process(owner)?.ask(&format!("transfer {} {}", shard.0, to.0));
        self.faults.hand_overs += u64::from(asked.is_ok());
        Ok(())
    }

    /// Whoever reads what the owner granted must not do so any longer when another one begins.
    fn pause_in_hand_over(&mut self, shard: ShardId, owner: NodeId) -> Result<(), Failure> {
        let to = self.other(owner);
        self.process(owner)?.say(&format!("transfer {} {}", shard.0, to.0))?;
        let lease_us = Timing::default().lease_ms * 1000;
        let delay = self.dice.below(lease_us);
        std::thread::sleep(Duration::from_micros(delay));
        self.pause(shard, owner, false)?;
        let heard = self.process(owner)?.hear();
        self.faults.hand_overs += u64::from(heard.is_ok());
        Ok(())
    }

    /// After the last fault: clients answered everywhere once more, then nothing asked any more,
    /// and what every node's tables hold written down at one end of the log. Gives who votes.
    pub(crate) fn settle(&mut self) -> Result<Vec<NodeId>, Failure> {
        self.until_load(None)?;
        self.processes.iter_mut().try_for_each(|process| process.ask("rest").map(drop))?;
        for shard in shards() {
            let owner = self.owner(shard, None)?;
            let end = self.process(owner)?.ask(&format!("end {}", shard.0))?;
            for process in &mut self.processes {
                process.ask(&format!("dump {} {end}", shard.0))?;
            }
        }
        Ok(self.processes.iter().map(|process| process.id).collect())
    }
}
