//! Nodes as children of this process.
//!
//! A child must not outlive its parent, however the parent ends. So each child gets a pipe as its
//! standard input, whose other end only this process holds: when it closes, because the child is
//! asked to end or because this process is gone, the child ends (`end-with-stdin` in a node's
//! configuration). The kernel's parent-death signal would need unsafe code between fork and exec,
//! and follows the thread that started the child, not the process.
//!
//! One task a child: it alone owns the child, so a signal never goes to a pid that was used again.

#![expect(clippy::disallowed_methods, reason = "the edge: processes and tasks are started here")]

use crate::inventory::Exit;
use crate::launcher::ready_line::ReadyScanner;
use crate::launcher::{
    BoxFuture, LaunchError, LaunchSpec, Launched, Launcher, ProcessEvent, ProcessNumber,
};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;

/// Events that wait to be taken; a child's task waits when they are this many.
const EVENTS_MAX: usize = 256;
/// Orders that wait at one child. One of each kind is enough.
const ORDERS_MAX: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Order {
    Stop,
    Kill,
}

/// Launches children of this process. Must be used inside a tokio runtime.
pub struct ProcessLauncher {
    next: u64,
    orders: BTreeMap<ProcessNumber, mpsc::Sender<Order>>,
    events_in: mpsc::Sender<ProcessEvent>,
    events: mpsc::Receiver<ProcessEvent>,
}

impl Default for ProcessLauncher {
    fn default() -> Self {
        Self::new()
    }
}

impl ProcessLauncher {
    /// A launcher without children.
    #[must_use]
    pub fn new() -> Self {
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        Self { next: 1, orders: BTreeMap::new(), events_in, events }
    }

    fn order(&mut self, process: ProcessNumber, order: Order) {
        if let Some(orders) = self.orders.get(&process) {
            // Full means that the same was ordered already; closed, that the process is gone.
            let _ = orders.try_send(order);
        }
    }
}

impl Launcher for ProcessLauncher {
    fn launch(&mut self, spec: &LaunchSpec) -> Result<Launched, LaunchError> {
        let open = || OpenOptions::new().create(true).append(true).open(&spec.log);
        let file = |source| LaunchError::File { path: spec.log.clone(), source };
        let log = open().map_err(file)?;
        let errors = log.try_clone().map_err(file)?;
        let spawned = Command::new(&spec.program)
            .args(&spec.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn();
        let spawn = |source| LaunchError::Spawn { program: spec.program.clone(), source };
        let child = spawned.map_err(spawn)?;
        let pid = child.id().expect("a child that nobody has waited for has a pid");
        let process = ProcessNumber(self.next);
        self.next += 1;
        let (orders_in, orders) = mpsc::channel(ORDERS_MAX);
        self.orders.insert(process, orders_in);
        let scanner = ReadyScanner::new(spec.name.clone());
        let watch = Watch { process, scanner, log, events: self.events_in.clone() };
        tokio::spawn(watch.run(child, orders));
        Ok(Launched { process, pid })
    }

    fn stop(&mut self, process: ProcessNumber) {
        self.order(process, Order::Stop);
    }

    fn kill(&mut self, process: ProcessNumber) {
        self.order(process, Order::Kill);
    }

    fn next_event(&mut self) -> BoxFuture<'_, ProcessEvent> {
        Box::pin(async {
            let event = self.events.recv().await.expect("this launcher holds a sender itself");
            if let ProcessEvent::Exited(process, _) = event {
                self.orders.remove(&process);
            }
            event
        })
    }
}

/// What the task of one child holds.
struct Watch {
    process: ProcessNumber,
    scanner: ReadyScanner,
    log: File,
    events: mpsc::Sender<ProcessEvent>,
}

impl Watch {
    async fn run(mut self, mut child: Child, mut orders: mpsc::Receiver<Order>) {
        let mut input = child.stdin.take();
        let output = child.stdout.take().expect("standard output is a pipe");
        let mut output = Some(BufReader::new(output));
        let status = loop {
            tokio::select! {
                biased;
                more = self.read(&mut output), if output.is_some() => {
                    if !more {
                        output = None;
                    }
                }
                order = next_order(&mut orders) => match order {
                    Order::Stop => drop(input.take()),
                    // It fails only if the child is gone; then the wait below says so.
                    Order::Kill => drop(child.start_kill()),
                },
                status = child.wait() => break status,
            }
        };
        let exit = status.map_or(Exit::NotLaunched, exit_of);
        // If nobody takes events any more, nobody wants to know.
        let _ = self.events.send(ProcessEvent::Exited(self.process, exit)).await;
    }

    /// Takes what the child has printed into its log, and looks for the ready line. False at its
    /// end. Nothing is lost if the future is dropped.
    async fn read(&mut self, output: &mut Option<BufReader<ChildStdout>>) -> bool {
        let Some(reader) = output else { return false };
        let (count, ready) = match reader.fill_buf().await {
            Ok([]) | Err(_) => return false,
            Ok(bytes) => {
                // A log that cannot be written must not end the node.
                let _ = self.log.write_all(bytes);
                (bytes.len(), self.scanner.feed(bytes))
            }
        };
        reader.consume(count);
        if let Some(ready) = ready
            && self.events.try_send(ProcessEvent::Ready(self.process, ready)).is_err()
        {
            // Hundreds of events wait untaken. The node will count as not ready in time.
            tracing::error!("the ready line of a node was lost: nobody takes events");
        }
        true
    }
}

/// The next order. A launcher that is gone has its children killed.
async fn next_order(orders: &mut mpsc::Receiver<Order>) -> Order {
    orders.recv().await.unwrap_or(Order::Kill)
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::NotLaunched,
    }
}
