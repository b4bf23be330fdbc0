//! The orchestrator with real, short-lived processes: shell scripts that print a ready line and end
//! when their standard input closes, as nodes do.

use nearstate_orchestrator::executor::{MakeConfig, NodeLife, NodeTemplate};
use nearstate_orchestrator::inventory::Exit;
use nearstate_orchestrator::launcher::process::ProcessLauncher;
use nearstate_orchestrator::plan::Start;
use nearstate_orchestrator::{Event, Orchestrator, OrchestratorHandle, Policy};
use nearstate_store::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// A node that says it is ready and reads its input until that closes.
fn good_script(life: &NodeLife) -> String {
    let number: u64 = life.name[1..].parse().unwrap();
    let id = 100 * life.generation + number;
    let NodeLife { name, directory, .. } = life;
    format!(
        "echo starting; echo 'ready node={id} name={name} listen=127.0.0.1:{id} port={}/port'\n\
         while read line; do :; done\n",
        directory.display()
    )
}

fn start(nodes: u16, directory: &Path, config: MakeConfig) -> OrchestratorHandle {
    let policy = Policy::of_nodes(nodes).unwrap();
    let policy = Policy { retry_after_ms: 1, ready_timeout_ms: 60_000, ..policy };
    let template = NodeTemplate {
        program: "/bin/sh".into(),
        arguments: vec![],
        directory: directory.to_owned(),
        config,
    };
    Orchestrator::start(policy, template, ProcessLauncher::new()).unwrap()
}

/// Events until one fits; all of them, that one last.
async fn until(handle: &mut OrchestratorHandle, fits: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut seen = Vec::new();
    loop {
        let event = handle.next_event().await.unwrap_or_else(|| panic!("it ended: {seen:?}"));
        let done = fits(&event);
        seen.push(event);
        if done {
            return seen;
        }
    }
}

async fn until_ready(handle: &mut OrchestratorHandle, count: usize) -> Vec<Event> {
    let mut seen = Vec::new();
    for _ in 0..count {
        seen.extend(until(handle, |event| matches!(event, Event::Ready { .. })).await);
    }
    seen
}

fn pids(events: &[Event]) -> BTreeMap<String, u32> {
    let launched = events.iter().filter_map(|event| match event {
        Event::Launched { name, pid, .. } => Some((name.clone(), *pid)),
        _ => None,
    });
    launched.collect()
}

/// Whether a process of this id exists (as a zombie at least; ours are reaped).
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn one_forms_two_join_and_none_is_left_after_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut handle = start(3, directory.path(), Arc::new(good_script));
    let events = until_ready(&mut handle, 3).await;
    let pids = pids(&events);
    assert_eq!(pids.len(), 3);
    assert!(pids.values().all(|pid| exists(*pid)));
    let names: BTreeSet<String> = events
        .iter()
        .filter_map(|event| match event {
            Event::Ready { name, generation: 1, node } => {
                assert!(node.port.ends_with(&format!("{name}.1/port")), "{}", node.port);
                Some(name.clone())
            }
            _ => None,
        })
        .collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    handle.shutdown().await.unwrap();
    assert!(pids.values().all(|pid| !exists(*pid)), "children were left running");
}

#[tokio::test]
async fn a_killed_node_is_replaced_under_its_name_by_a_fresh_generation() {
    let directory = tempfile::tempdir().unwrap();
    let mut handle = start(3, directory.path(), Arc::new(good_script));
    until_ready(&mut handle, 3).await;
    handle.kill("n2").await.unwrap();
    let events = until(&mut handle, |event| matches!(event, Event::Replaced { .. })).await;
    let (name, old, new) = ("n2".to_owned(), NodeId(102), NodeId(202));
    let died =
        Event::Died { name: name.clone(), generation: 1, exit: Exit::Signal(9), node: Some(old) };
    assert!(events.contains(&died), "{events:?}");
    assert_eq!(events.last(), Some(&Event::Replaced { name, old, new }));
    assert!(directory.path().join("n2.2/node.toml").exists());
    handle.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_node_that_cannot_start_is_given_up_with_what_it_said() {
    let directory = tempfile::tempdir().unwrap();
    let config: MakeConfig = Arc::new(|life| match life.start {
        Start::Form => good_script(life),
        Start::Join(_) => "echo 'the port is in use' >&2; exit 3".to_owned(),
    });
    let mut handle = start(2, directory.path(), config);
    let events = until(&mut handle, |event| matches!(event, Event::GivenUp { .. })).await;
    let failed: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::StartFailed { name, exit, log_tail } => Some((name.as_str(), *exit, log_tail)),
            _ => None,
        })
        .collect();
    assert_eq!(failed.len(), 3);
    for (name, exit, log_tail) in failed {
        assert_eq!((name, exit), ("n2", Exit::Code(3)));
        assert!(log_tail.contains("the port is in use"), "{log_tail}");
    }
    handle.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_program_that_there_is_not_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("nearstate");
    let template =
        NodeTemplate::of_program(program, directory.path().into(), Arc::new(good_script));
    let policy = Policy { retry_after_ms: 1, ..Policy::of_nodes(1).unwrap() };
    let mut handle = Orchestrator::start(policy, template, ProcessLauncher::new()).unwrap();
    let events = until(&mut handle, |event| matches!(event, Event::GivenUp { .. })).await;
    let named = events.iter().any(|event| {
        matches!(event, Event::StartFailed { exit: Exit::NotLaunched, log_tail, .. }
            if log_tail.contains("nearstate cannot be started"))
    });
    assert!(named, "{events:?}");
    handle.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_node_that_ignores_the_end_of_its_input_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let config: MakeConfig =
        Arc::new(|life| good_script(life) + "trap '' TERM INT; while :; do sleep 1; done");
    let policy = Policy { stop_timeout_ms: 1, ..Policy::of_nodes(1).unwrap() };
    let template = NodeTemplate {
        program: "/bin/sh".into(),
        arguments: vec![],
        directory: directory.path().into(),
        config,
    };
    let mut handle = Orchestrator::start(policy, template, ProcessLauncher::new()).unwrap();
    let events = until_ready(&mut handle, 1).await;
    handle.shutdown().await.unwrap();
    assert!(pids(&events).values().all(|pid| !exists(*pid)));
}
