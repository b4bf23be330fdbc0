//! The script's way through a cluster of real processes, from the first launch to the last counter.
//!
//! One thread: it moves packets, hears the news of the control thread between two steps, and sleeps
//! when neither has anything. What becomes of packets is decided in [`super::replay`].

use super::DemoError;
use super::DemoPlan;
use super::control::{Control, News, Order};
use super::driver::Driver;
use super::measure::Meter;
use super::outcome::Outcomes;
use super::ports::Ports;
use super::replay::Replay;
use super::report::{KillReport, NodeReport};
use super::roster::Roster;
use super::script::Script;
use super::steerer::Steerer;
use super::story::Story;
use nearstate_orchestrator::event::Event;
use nearstate_orchestrator::inventory::ReadyNode;
use nearstate_placement::Map;
use nearstate_store::Time;
use nearstate_store::clock::boot_now;
use std::path::Path;
use std::time::Duration;

/// Packets that may be inside one node at a time.
const WINDOW: usize = 256;
/// How long nodes may take to be there.
const READY_MAX_MS: u64 = 60_000;
/// How long the demo bears that no packet is answered.
const STALL_MAX_MS: u64 = 30_000;
/// How long the demo waits, once all packets are through, for a killed node's successor.
const REPLACED_MAX_MS: u64 = 20_000;
/// How long the last slots may take to arrive.
const MOVED_MAX_MS: u64 = 60_000;
/// How long nodes may take to tell their counters.
const COLLECT_MAX_MS: u64 = 10_000;
/// Longest wait for news when no packets move.
const NEWS_WAIT: Duration = Duration::from_millis(100);

/// What a run through the cluster gives.
pub(crate) struct ClusterRun {
    /// What became of every packet.
    pub(crate) outcomes: Outcomes,
    /// What was measured.
    pub(crate) meter: Meter,
    /// All nodes.
    pub(crate) nodes: Vec<NodeReport>,
    /// All kills.
    pub(crate) kills: Vec<KillReport>,
    /// Packets sent again.
    pub(crate) retransmitted: u64,
    /// Answers that nobody waited for.
    pub(crate) unexpected: u64,
    /// Slots that moved while packets flowed.
    pub(crate) slots_moved: u64,
}

/// How the run goes on.
#[derive(Debug, Default)]
struct Progress {
    ready: usize,
    settled: Option<Result<(), String>>,
    collected: bool,
    kill_ordered: bool,
    /// Slots that have moved, while packets flowed, and whether more are to.
    slots_moved: u64,
    moving: bool,
    began: Option<Time>,
    owned: Vec<(String, usize)>,
}

/// See the module's text.
pub(crate) struct Run<'a> {
    driver: Driver<'a, Ports>,
    roster: Roster,
    control: Control,
    story: &'a mut Story,
    progress: Progress,
    packets: usize,
}

impl<'a> Run<'a> {
    /// A run whose nodes are being started.
    pub(crate) fn new(
        script: &'a Script,
        steerer: Steerer,
        control: Control,
        story: &'a mut Story,
    ) -> Self {
        let replay = Replay::new(script, steerer, WINDOW);
        Self {
            driver: Driver::new(replay, Ports::default()),
            roster: Roster::default(),
            control,
            story,
            progress: Progress::default(),
            packets: script.len(),
        }
    }

    /// Waits for the nodes, sends all packets, and meanwhile moves slots and kills a node, as
    /// planned.
    pub(crate) fn go(mut self, plan: &DemoPlan) -> Result<ClusterRun, DemoError> {
        let nodes = usize::from(plan.nodes);
        self.wait_until(READY_MAX_MS, "not all nodes are ready", |run| {
            run.progress.ready >= nodes
        })?;
        self.control.order(Order::Settle);
        self.wait_until(READY_MAX_MS, "the cluster does not settle", |run| {
            run.progress.settled.is_some()
        })?;
        if let Some(Err(lack)) = self.progress.settled.take() {
            return Err(DemoError::Unsettled(lack));
        }
        self.story.tell(&format!("every shard has its owner; {} packets go in", self.packets));
        self.story.begin_bar(self.packets as u64);
        if let Some(slots) = plan.moves {
            self.progress.moving = true;
            self.control.order(Order::Move(slots));
        }
        let moved = self.move_packets(plan.kill_percent);
        self.story.end_bar();
        moved?;
        self.story.tell("every packet has come out or was dropped");
        let slots_moved = self.progress.slots_moved;
        self.wait_until(MOVED_MAX_MS, "slots do not arrive where they are to go", |run| {
            !run.progress.moving
        })?;
        if self.progress.kill_ordered {
            // A cluster that stays short of a node is a fault, but not one of packets.
            let whole = self.wait_until(REPLACED_MAX_MS, "", |run| run.roster.is_whole_again());
            if let Err(DemoError::Late { .. }) = whole {
                self.story.tell("the killed node was not replaced in time");
            } else {
                whole?;
            }
        }
        self.control.order(Order::Collect);
        self.wait_until(COLLECT_MAX_MS, "the nodes do not tell their counters", |run| {
            run.progress.collected
        })?;
        Ok(self.finish(slots_moved))
    }

    fn finish(self, slots_moved: u64) -> ClusterRun {
        let Driver { replay, meter, .. } = self.driver;
        let nodes = self.roster.node_reports(|node| replay.answered(node));
        ClusterRun {
            nodes,
            kills: self.roster.kill_reports(),
            retransmitted: replay.retransmitted(),
            unexpected: replay.unexpected(),
            slots_moved,
            outcomes: replay.into_outcomes(),
            meter,
        }
    }

    /// Hears news until something is so.
    fn wait_until(
        &mut self,
        at_most_ms: u64,
        what: &'static str,
        is_so: impl Fn(&Self) -> bool,
    ) -> Result<(), DemoError> {
        let give_up = boot_now().plus_ms(at_most_ms);
        while !is_so(self) {
            if boot_now() > give_up {
                return Err(DemoError::Late { what, seconds: at_most_ms / 1_000 });
            }
            if let Some(news) = self.control.news_within(NEWS_WAIT) {
                self.on_news(news)?;
            }
        }
        Ok(())
    }

    fn move_packets(&mut self, kill_percent: Option<u8>) -> Result<(), DemoError> {
        let mut last_done = (self.driver.replay.done(), boot_now());
        self.progress.began = Some(last_done.1);
        while !self.driver.replay.is_done() {
            self.driver.lane.listen();
            let moved = self.driver.step(&boot_now);
            while let Some(news) = self.control.news() {
                self.on_news(news)?;
            }
            let done = self.driver.replay.done();
            if let Some(percent) = kill_percent
                && !self.progress.kill_ordered
                && done * 100 >= self.packets * usize::from(percent)
            {
                self.kill();
            }
            if done != last_done.0 {
                last_done = (done, boot_now());
                self.story.at(done as u64);
            } else if boot_now() > last_done.1.plus_ms(STALL_MAX_MS) {
                return Err(DemoError::Stalled { done, packets: self.packets });
            }
            if !moved {
                let replay = &self.driver.replay;
                self.driver.lane.sleep(replay.living(), |node| replay.inside(node));
            }
        }
        Ok(())
    }

    fn kill(&mut self) {
        self.progress.kill_ordered = true;
        let replay = &self.driver.replay;
        let Some(victim) = self.roster.busiest(|node| replay.answered(node)) else { return };
        let done = replay.done() as u64;
        let began = self.progress.began.unwrap_or_default();
        let at_ms = super::measure::round3(boot_now().since_ns(began) as f64 / 1e6);
        self.roster.handle_kill(victim, done, at_ms);
        self.control.order(Order::Kill(self.roster.id(victim)));
        let name = self.roster.name(victim);
        self.story.tell(&format!("{done} packets are through: {name}, the busiest, is killed"));
    }

    fn on_news(&mut self, news: News) -> Result<(), DemoError> {
        match news {
            News::Event(event) => self.on_event(event)?,
            News::Map(map) => self.on_map(&map),
            News::Counters(node, counters) => self.roster.handle_counters(node, &counters),
            News::Settled(settled) => self.progress.settled = Some(settled),
            News::Moved { slots, to, is_last } => {
                self.progress.slots_moved += slots;
                self.progress.moving = !is_last;
                self.story.tell(&format!("{slots} slots moved to {to}"));
            }
            News::Killed => self.driver.meter.handle_kill(boot_now()),
            News::Collected => self.progress.collected = true,
            News::Interrupted => return Err(DemoError::Interrupted),
            News::Failed(why) => return Err(DemoError::Orchestrator(why)),
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<(), DemoError> {
        self.story.tell(&event.to_string());
        match event {
            Event::Ready { name, node, .. } => self.on_ready(&name, &node)?,
            Event::Died { name, node: Some(id), .. } => {
                let Some(node) = self.roster.handle_died(id) else { return Ok(()) };
                let inside = self.driver.bury(node, boot_now());
                self.roster.handle_buried(node, inside);
                self.story.tell(&format!("{inside} packets were inside {name}; they go elsewhere"));
            }
            Event::Replaced { old, new, .. } => self.roster.handle_replaced(old, new),
            Event::GivenUp { name } => return Err(DemoError::NodeGivenUp(name)),
            _ => {}
        }
        Ok(())
    }

    fn on_ready(&mut self, name: &str, node: &ReadyNode) -> Result<(), DemoError> {
        self.driver.lane.open(Path::new(&node.port))?;
        let index = self.roster.handle_ready(name, node.node);
        self.driver.replay.handle_node_up(index);
        self.progress.ready += 1;
        Ok(())
    }

    fn on_map(&mut self, map: &Map) {
        let owners = self.roster.handle_map(map);
        let owned = self.roster.owned();
        if owned != self.progress.owned {
            let words: Vec<String> =
                owned.iter().map(|(name, slots)| format!("{name} {slots}")).collect();
            self.story.tell(&format!("map {}: slots owned: {}", map.epoch, words.join(", ")));
            self.progress.owned = owned;
        }
        self.driver.replay.handle_owners(owners);
    }
}
