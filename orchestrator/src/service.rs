//! The loop: look, plan, check, carry out, wait for something to happen; and from the start again.
//! It takes no decisions itself, and tells what happens through a channel.

#![expect(
    clippy::disallowed_methods,
    reason = "the edge: the clock is read and the task started here"
)]

use crate::check;
use crate::event::Event;
use crate::executor::{Executor, NodeTemplate};
use crate::inventory::ProcessState;
use crate::launcher::Launcher;
use crate::plan::Plan;
use crate::planner::plan;
use crate::policy::{Policy, PolicyError};
use core::time::Duration;
use nearstate_placement::MemberState;
use nearstate_store::{NodeId, Time};
use std::collections::BTreeSet;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longest time between two turns: deadlines (ready, stop, retry) are looked at so often.
const TICK_MS: u64 = 100;
/// Commands that wait to be taken.
const COMMANDS_MAX: usize = 64;
/// Events that wait to be taken; the loop waits when they are this many.
const EVENTS_MAX: usize = 1024;

/// What an orchestrator may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Command {
    Kill(String),
    SetNodes(u16),
    Members(Vec<(NodeId, MemberState)>),
    Shutdown,
}

/// The orchestrator has ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OrchestratorError {
    /// It takes no commands any more.
    #[error("the orchestrator has ended")]
    Ended,
    /// Its task panicked: a fault of ours. Its children have been killed.
    #[error("the orchestrator failed: {0}")]
    Failed(String),
    /// What was asked for cannot be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// A running orchestrator. Dropping it ends it and kills its children.
pub struct OrchestratorHandle {
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl OrchestratorHandle {
    /// The next thing that happened; `None` when it has ended. Nothing is lost if the future is
    /// dropped.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Kills a node's process (SIGKILL), as an accident would; it will be replaced.
    ///
    /// # Errors
    /// If the orchestrator has ended.
    pub async fn kill(&self, name: &str) -> Result<(), OrchestratorError> {
        self.send(Command::Kill(name.to_owned())).await
    }

    /// Wants another number of nodes.
    ///
    /// # Errors
    /// If that number cannot be, or the orchestrator has ended.
    pub async fn set_nodes(&self, nodes: u16) -> Result<(), OrchestratorError> {
        Policy::of_nodes(nodes)?;
        self.send(Command::SetNodes(nodes)).await
    }

    /// Says what the cluster thinks of its members, from its map.
    ///
    /// # Errors
    /// If the orchestrator has ended.
    pub async fn on_members(
        &self,
        members: Vec<(NodeId, MemberState)>,
    ) -> Result<(), OrchestratorError> {
        self.send(Command::Members(members)).await
    }

    /// Ends all nodes, then the orchestrator. No child is left when it returns.
    ///
    /// # Errors
    /// If the orchestrator has failed.
    pub async fn shutdown(mut self) -> Result<(), OrchestratorError> {
        // If it has ended already, that is what was wanted.
        let _ = self.send(Command::Shutdown).await;
        while self.events.recv().await.is_some() {}
        (&mut self.task).await.map_err(|error| OrchestratorError::Failed(error.to_string()))
    }

    async fn send(&self, command: Command) -> Result<(), OrchestratorError> {
        self.commands.send(command).await.map_err(|_| OrchestratorError::Ended)
    }
}

impl Drop for OrchestratorHandle {
    fn drop(&mut self) {
        // The task owns the launcher, and the launcher's end kills the children.
        self.task.abort();
    }
}

/// See the head of the file.
pub struct Orchestrator<L> {
    policy: Policy,
    executor: Executor<L>,
    plan: Plan,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    given_up: BTreeSet<String>,
}

impl<L: Launcher + 'static> Orchestrator<L> {
    /// Starts an orchestrator as a task of the present tokio runtime.
    ///
    /// # Errors
    /// If the policy cannot be followed.
    pub fn start(
        policy: Policy,
        template: NodeTemplate,
        launcher: L,
    ) -> Result<OrchestratorHandle, PolicyError> {
        policy.check()?;
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let orchestrator = Self {
            executor: Executor::new(launcher, template, policy.stop_timeout_ms),
            policy,
            plan: Plan::empty(),
            started: Instant::now(),
            commands,
            events: events_in,
            given_up: BTreeSet::new(),
        };
        let task = tokio::spawn(orchestrator.run());
        Ok(OrchestratorHandle { commands: commands_in, events, task })
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn tell(&mut self, events: Vec<Event>) {
        for event in events {
            tracing::info!("{event}");
            // If nobody listens, the work goes on all the same.
            let _ = self.events.send(event).await;
        }
    }

    async fn run(mut self) {
        loop {
            self.turn().await;
            tokio::select! {
                event = self.executor.next_process_event() => {
                    let events = self.executor.on_process_event(event, self.now());
                    self.tell(events).await;
                }
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown) | None => break,
                    Some(command) => self.on_command(command),
                },
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => {}
            }
        }
        self.stop().await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Kill(name) => {
                if !self.executor.kill(&name) {
                    tracing::warn!("{name} cannot be killed: it does not run");
                }
            }
            Command::SetNodes(nodes) => self.policy.nodes = nodes,
            Command::Members(members) => self.executor.on_members(&members),
            Command::Shutdown => {}
        }
    }

    /// Looks, plans, checks, carries out.
    async fn turn(&mut self) {
        let now = self.now();
        let seen = self.executor.inventory(now);
        let planned = plan(&self.policy, &seen, &self.plan);
        if let Some(next) = planned.next {
            let broken = check::check(&self.policy, &seen, &self.plan, &next);
            assert!(broken.is_empty(), "a plan that breaks rules was about to be done: {broken:?}");
            let lines = next.difference(&self.plan);
            self.tell(vec![Event::Planned(next.number, lines)]).await;
            self.plan = next;
        }
        for name in planned.given_up {
            if self.given_up.insert(name.clone()) {
                self.tell(vec![Event::GivenUp { name }]).await;
            }
        }
        let events = self.executor.execute(&self.plan, now);
        self.tell(events).await;
    }

    /// Ends all nodes: asks, and kills what takes too long.
    async fn stop(&mut self) {
        while self.executor.running() > 0 {
            self.executor.stop_all(self.now());
            tokio::select! {
                event = self.executor.next_process_event() => {
                    let events = self.executor.on_process_event(event, self.now());
                    self.tell(events).await;
                }
                () = tokio::time::sleep(Duration::from_millis(TICK_MS)) => {}
            }
        }
        let left = self.executor.inventory(self.now());
        let ended = |process: &ProcessState| matches!(process, ProcessState::Exited { .. });
        assert!(left.nodes.iter().all(|node| ended(&node.process)), "a child was left running");
    }
}
