//! Makes reality match a plan, and keeps what was seen. Idempotent: carrying out the same plan
//! again does nothing, and after any failure the next turn goes on from what is there.
//!
//! It takes no decisions: which process there is to be is in the plan, why is in the planner.

use crate::event::Event;
use crate::inventory::{Exit, Inventory, NodeSeen, ProcessState, ReadyNode};
use crate::launcher::{LaunchError, LaunchSpec, Launched, Launcher, ProcessEvent, ProcessNumber};
use crate::plan::{Plan, PlannedNode, Start, Wanted};
use nearstate_placement::MemberState;
use nearstate_store::{NodeId, Time};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a log's end that are shown when a node does not start.
const LOG_TAIL_BYTES: u64 = 2048;

/// One life of a node, for whoever writes its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLife {
    /// The node's name.
    pub name: String,
    /// Which process of that name, from 1.
    pub generation: u64,
    /// How it gets into the cluster.
    pub start: Start,
    /// A fresh directory for all files of this life.
    pub directory: PathBuf,
}

/// Writes the configuration of a life.
pub type MakeConfig = Arc<dyn Fn(&NodeLife) -> String + Send + Sync>;

/// How nodes are started.
#[derive(Clone)]
pub struct NodeTemplate {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the path of the configuration file comes last.
    pub arguments: Vec<String>,
    /// Below it, each life has a directory: `NAME.GENERATION`.
    pub directory: PathBuf,
    /// The text of the configuration file.
    pub config: MakeConfig,
}

impl NodeTemplate {
    /// `PROGRAM node --config FILE`.
    #[must_use]
    pub fn of_program(program: PathBuf, directory: PathBuf, config: MakeConfig) -> Self {
        let arguments = vec!["node".to_owned(), "--config".to_owned()];
        Self { program, arguments, directory, config }
    }
}

/// The newest process of a name.
struct Slot {
    generation: u64,
    /// `None` if the launch failed.
    launched: Option<Launched>,
    state: ProcessState,
    member: Option<MemberState>,
    failed_starts: u32,
    /// Since when it is asked to end.
    stopping: Option<Time>,
    /// The node of this name that died last and has no successor yet.
    died: Option<NodeId>,
    log: PathBuf,
}

impl Slot {
    const fn is_running(&self) -> bool {
        !matches!(self.state, ProcessState::Exited { .. })
    }
}

/// See the head of the file.
pub struct Executor<L> {
    launcher: L,
    template: NodeTemplate,
    stop_timeout_ms: u64,
    slots: BTreeMap<String, Slot>,
    cluster_exists: bool,
}

impl<L: Launcher> Executor<L> {
    /// An executor that has started nothing yet.
    #[must_use]
    pub const fn new(launcher: L, template: NodeTemplate, stop_timeout_ms: u64) -> Self {
        let slots = BTreeMap::new();
        Self { launcher, template, stop_timeout_ms, slots, cluster_exists: false }
    }

    /// What was seen so far.
    #[must_use]
    pub fn inventory(&self, now: Time) -> Inventory {
        let seen = |(name, slot): (&String, &Slot)| NodeSeen {
            name: name.clone(),
            generation: slot.generation,
            process: slot.state.clone(),
            member: slot.member,
            failed_starts: slot.failed_starts,
        };
        let nodes = self.slots.iter().map(seen).collect();
        Inventory { at: now, nodes, cluster_exists: self.cluster_exists }
    }

    /// Takes one step towards the plan for each name.
    pub fn execute(&mut self, plan: &Plan, now: Time) -> Vec<Event> {
        let mut events = Vec::new();
        for node in &plan.nodes {
            match &node.wanted {
                Wanted::Run(start) => events.extend(self.run_node(node, start, now)),
                Wanted::Stop => self.stop_node(&node.name, node.generation, now),
            }
        }
        events
    }

    fn run_node(&mut self, node: &PlannedNode, start: &Start, now: Time) -> Option<Event> {
        let before = self.slots.get(&node.name);
        if before.is_some_and(|slot| slot.generation >= node.generation) {
            return None;
        }
        assert!(!before.is_some_and(Slot::is_running), "two processes of one name");
        let died = before.and_then(|slot| slot.died);
        let failed_starts = before.map_or(0, |slot| slot.failed_starts);
        let (name, generation) = (node.name.clone(), node.generation);
        let directory = self.template.directory.join(format!("{name}.{generation}"));
        let log = directory.join("log");
        let life = NodeLife { name: name.clone(), generation, start: start.clone(), directory };
        let launched = self.launch(&life, &log);
        let exited = ProcessState::Exited { exit: Exit::NotLaunched, at: now, was_ready: false };
        let running = ProcessState::Starting { since: now };
        let slot = Slot {
            generation,
            state: if launched.is_ok() { running } else { exited },
            failed_starts: failed_starts + u32::from(launched.is_err()),
            launched: launched.as_ref().ok().copied(),
            member: None,
            stopping: None,
            died,
            log,
        };
        self.slots.insert(name.clone(), slot);
        Some(match launched {
            Ok(Launched { pid, .. }) => Event::Launched { name, generation, pid },
            Err(error) => {
                let log_tail = error.to_string();
                Event::StartFailed { name, exit: Exit::NotLaunched, log_tail }
            }
        })
    }

    fn launch(&mut self, life: &NodeLife, log: &Path) -> Result<Launched, LaunchError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| LaunchError::File { path, source }
        };
        std::fs::create_dir_all(&life.directory).map_err(file(&life.directory))?;
        let config = life.directory.join("node.toml");
        std::fs::write(&config, (self.template.config)(life)).map_err(file(&config))?;
        let mut arguments = self.template.arguments.clone();
        arguments.push(config.to_string_lossy().into_owned());
        let program = self.template.program.clone();
        let name = life.name.clone();
        self.launcher.launch(&LaunchSpec { name, program, arguments, log: log.to_owned() })
    }

    /// Asks a process to end; kills it if it takes too long.
    fn stop_node(&mut self, name: &str, generation: u64, now: Time) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(Launched { process, .. }) = slot.launched else { return };
        if slot.generation != generation || !slot.is_running() {
            return;
        }
        match slot.stopping {
            None => {
                slot.stopping = Some(now);
                self.launcher.stop(process);
            }
            Some(since) if now >= since.plus_ms(self.stop_timeout_ms) => {
                self.launcher.kill(process);
            }
            Some(_) => {}
        }
    }

    /// Asks all to end. Call it again until [`Executor::running`] is 0.
    pub fn stop_all(&mut self, now: Time) {
        let all: Vec<(String, u64)> =
            self.slots.iter().map(|(name, slot)| (name.clone(), slot.generation)).collect();
        for (name, generation) in all {
            self.stop_node(&name, generation, now);
        }
    }

    /// Processes that live, as far as was seen.
    #[must_use]
    pub fn running(&self) -> usize {
        self.slots.values().filter(|slot| slot.is_running()).count()
    }

    /// Kills the process of a name (SIGKILL), as an accident would. False if there is none.
    pub fn kill(&mut self, name: &str) -> bool {
        let slot = self.slots.get(name).filter(|slot| slot.is_running());
        let Some(Launched { process, .. }) = slot.and_then(|slot| slot.launched) else {
            return false;
        };
        self.launcher.kill(process);
        true
    }

    /// Takes what the cluster thinks of its members.
    pub fn on_members(&mut self, members: &[(NodeId, MemberState)]) {
        for slot in self.slots.values_mut() {
            if let ProcessState::Ready(ready) = &slot.state {
                let said = members.iter().find(|(id, _)| *id == ready.node);
                slot.member = said.map(|(_, state)| *state).or(slot.member);
            }
        }
    }

    /// Waits for the next thing that happens to a process.
    pub async fn next_process_event(&mut self) -> ProcessEvent {
        self.launcher.next_event().await
    }

    /// Takes note of what happened to a process.
    pub fn on_process_event(&mut self, event: ProcessEvent, now: Time) -> Vec<Event> {
        match event {
            ProcessEvent::Ready(process, ready) => self.on_ready(process, ready),
            ProcessEvent::Exited(process, exit) => self.on_exit(process, exit, now),
        }
    }

    fn slot_of(&mut self, process: ProcessNumber) -> Option<(&String, &mut Slot)> {
        let is_it = |slot: &Slot| slot.launched.is_some_and(|it| it.process == process);
        self.slots.iter_mut().find(|(_, slot)| is_it(slot))
    }

    fn on_ready(&mut self, process: ProcessNumber, ready: ReadyNode) -> Vec<Event> {
        let Some((name, slot)) = self.slot_of(process) else { return Vec::new() };
        if !matches!(slot.state, ProcessState::Starting { .. }) {
            // A second ready line, or one that was read after the end: it says nothing new.
            return Vec::new();
        }
        let (name, new) = (name.clone(), ready.node);
        slot.state = ProcessState::Ready(ready.clone());
        slot.failed_starts = 0;
        let generation = slot.generation;
        let died = slot.died.take();
        self.cluster_exists = true;
        let replaced = died.map(|old| Event::Replaced { name: name.clone(), old, new });
        let ready = Event::Ready { name, generation, node: ready };
        [Some(ready), replaced].into_iter().flatten().collect()
    }

    fn on_exit(&mut self, process: ProcessNumber, exit: Exit, now: Time) -> Vec<Event> {
        let Some((name, slot)) = self.slot_of(process) else { return Vec::new() };
        let (name, generation) = (name.clone(), slot.generation);
        let node = match &slot.state {
            ProcessState::Ready(ready) => Some(ready.node),
            _ => None,
        };
        let was_ready = node.is_some();
        slot.state = ProcessState::Exited { exit, at: now, was_ready };
        slot.died = node.or(slot.died);
        if !was_ready {
            slot.failed_starts += 1;
            return vec![Event::StartFailed { name, exit, log_tail: log_tail(&slot.log) }];
        }
        if slot.stopping.is_some() {
            return vec![Event::Stopped { name, exit }];
        }
        vec![Event::Died { name, generation, exit, node }]
    }
}

/// The end of a log, as text; empty if it cannot be read.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
