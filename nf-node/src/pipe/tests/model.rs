//! Seeded random traffic through a seeded random store, against a model of a few lines: each flow's
//! packets in order, each seeing the last mark before it.

use super::world::{
    FLOW, OnRead, OnSubmit, Script, Toy, World, is_closed_by, number_of, port_of, run_dry,
    toy_frame, toy_pipe, turn,
};
use crate::counters::Event;
use crate::frame::Burst;
use crate::nf::Packet;
use crate::verdict::DropReason;
use nearstate_store::{Entry, Refusal};
use std::collections::BTreeMap;

/// A small generator of our own: the tests need no quality, only the same numbers each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below.max(1)
    }
}

/// How bad the weather is, in per mille.
#[derive(Clone, Copy, Debug)]
struct Weather {
    later: u64,
    short_lease: u64,
    read_fails: u64,
    never: u64,
    lose: u64,
    refuse: u64,
    unknown: u64,
    forget: u64,
    mute: u64,
}

struct Storm(Dice, Weather);

impl Storm {
    fn is(&mut self, per_mille: u64) -> bool {
        self.0.roll(1000) < per_mille
    }

    fn lease(&mut self) -> u64 {
        if self.is(self.1.short_lease) { self.0.roll(3000) } else { 1 << 40 }
    }
}

impl Script for Storm {
    fn on_read(&mut self) -> OnRead {
        let after_ns = self.0.roll(50_000);
        let lease_ns = self.lease();
        if self.is(self.1.read_fails) {
            let later = OnRead::LaterFailed { after_ns };
            return if after_ns.is_multiple_of(2) { OnRead::Unavailable } else { later };
        }
        if self.is(self.1.never) {
            return OnRead::NeverAnswered;
        }
        if self.is(self.1.later) {
            return OnRead::Later { after_ns, lease_ns };
        }
        OnRead::Here { lease_ns }
    }

    fn on_submit(&mut self) -> OnSubmit {
        let after_ns = self.0.roll(200_000);
        if self.is(self.1.lose) {
            return OnSubmit::Fail { after_ns };
        }
        if self.is(self.1.refuse) {
            let refusals = [Refusal::NotThisSlot, Refusal::PoolEmpty, Refusal::Malformed];
            return match refusals.get(self.0.roll(4) as usize) {
                Some(refusal) => OnSubmit::Refuse(*refusal),
                None => OnSubmit::Full,
            };
        }
        if self.is(self.1.forget) {
            return OnSubmit::Forgotten { applied: after_ns.is_multiple_of(2) };
        }
        if self.is(self.1.mute) {
            return OnSubmit::NeverAnswered;
        }
        if self.is(self.1.unknown) {
            return OnSubmit::Unknown { applied: after_ns.is_multiple_of(2) };
        }
        OnSubmit::Decide { after_ns }
    }

    fn on_clock(&mut self) -> u64 {
        self.0.roll(4000)
    }
}

/// A packet that leaves shows the state of its flow, and its own mark is committed.
fn check_leaving(packet: &Packet<'_>, entry: Option<&Entry>) {
    let (number, marks) = number_of(packet);
    let last = entry.map_or(0, |entry| entry.value.0[0]);
    assert_eq!(packet.tuple().destination.port, port_of(last), "it shows the state of now");
    assert!(!marks || last == number, "it left on a change that was not committed");
}

struct Sent {
    flow: u8,
    number: u16,
    marks: bool,
}

/// Sends `count` packets in random bursts. Returns what was sent, by tag, and how it ended.
fn run(toys: &[Toy], seed: u64, weather: Weather, count: u64) -> (Vec<Sent>, World) {
    let mut dice = Dice(seed | 1);
    let mut world = World::new(Storm(Dice(seed.rotate_left(32) | 1), weather));
    world.on_leave = check_leaving;
    let (mut pipe, mut shared) = toy_pipe(toys, world, 4096);
    let (mut sent, mut numbers) = (vec![], [0u16; 16]);
    while (sent.len() as u64) < count {
        let mut burst = Burst::new();
        for _ in 0..dice.roll(33) {
            let flow = dice.roll(16) as u8;
            let marks = dice.roll(4) == 0;
            numbers[usize::from(flow)] += 1;
            let number = numbers[usize::from(flow)];
            burst.push(toy_frame(sent.len() as u64, flow, number, marks));
            sent.push(Sent { flow, number, marks });
        }
        turn(&mut pipe, &mut shared, &mut burst);
        let mut world = shared.0.borrow_mut();
        world.now = world.now.plus_ns(dice.roll(30_000));
    }
    run_dry(&mut pipe, &mut shared);
    let counters = pipe.counters().snapshot();
    assert_eq!(counters.event(Event::PacketsIn), sent.len() as u64);
    let ended = counters.event(Event::PacketsOut) + counters.drops_total();
    assert_eq!(ended, sent.len() as u64, "{counters}");
    assert_eq!(shared.0.borrow().ends.len(), sent.len(), "every packet ends");
    drop(pipe);
    let world = std::rc::Rc::into_inner(shared.0).expect("the pipe is gone").into_inner();
    (sent, world)
}

fn check_order(sent: &[Sent], world: &World) {
    let mut last_left = BTreeMap::new();
    for tag in &world.left {
        let packet = &sent[*tag as usize];
        let before = last_left.insert(packet.flow, packet.number).unwrap_or(0);
        assert!(before < packet.number, "flow {}: {before}, {}", packet.flow, packet.number);
    }
}

#[test]
fn whatever_the_delays_the_verdicts_are_those_of_a_synchronous_run() {
    let calm = Weather {
        later: 0,
        short_lease: 0,
        read_fails: 0,
        never: 0,
        lose: 0,
        refuse: 0,
        unknown: 0,
        forget: 0,
        mute: 0,
    };
    let weathers = [
        calm,
        Weather { later: 500, ..calm },
        Weather { short_lease: 400, ..calm },
        Weather { later: 300, short_lease: 200, read_fails: 100, lose: 50, ..calm },
        Weather { later: 300, lose: 50, forget: 100, ..calm },
    ];
    for (seed, weather) in (1..).zip(weathers.iter().cycle().take(24)) {
        let toys: &[Toy] = match seed % 3 {
            0 => &[Toy::Flow],
            1 => &[Toy::Flow, Toy::Host],
            _ => &[Toy::Blind, Toy::Flow, Toy::Host],
        };
        let (sent, world) = run(toys, seed, *weather, 1500);
        check_order(&sent, &world);
        let (mut marks, mut counted) = ([0; 16], [0; 16]);
        for (tag, packet) in (0..).zip(&sent) {
            let mark = &mut marks[usize::from(packet.flow)];
            if packet.marks {
                *mark = u64::from(packet.number);
            }
            // From its first mark on a flow has an entry, at which each packet counts once.
            counted[usize::from(packet.flow)] += u64::from(*mark > 0);
            let expected =
                if is_closed_by(*mark) { Err(DropReason::RuleDenied) } else { Ok(port_of(*mark)) };
            let end = world.ends[&tag].map(|tuple| tuple.destination.port);
            assert_eq!(end, expected, "seed {seed}, flow {} {}", packet.flow, packet.number);
        }
        let mut found = [0; 16];
        for (key, tally) in world.counted.iter().filter(|(key, _)| key.kind() == FLOW) {
            found[usize::from(key.ends().0.port - 2000)] = tally.packets();
            assert_eq!(tally.bytes(), tally.packets() * 64);
        }
        assert_eq!(found, counted, "seed {seed}");
    }
}

#[test]
fn in_any_weather_order_and_commit_hold_and_every_packet_ends_once() {
    let mut reasons = BTreeMap::new();
    for seed in 100..130 {
        let weather = Weather {
            later: 300,
            short_lease: 200,
            read_fails: 100,
            never: 2,
            lose: 600,
            refuse: 100,
            unknown: 50,
            forget: 50,
            mute: 5,
        };
        let (sent, world) = run(&[Toy::Flow, Toy::Host], seed, weather, 1000);
        check_order(&sent, &world);
        for reason in world.ends.values().filter_map(|end| end.err()) {
            *reasons.entry(reason).or_insert(0) += 1;
        }
    }
    for reason in [
        DropReason::RuleDenied,
        DropReason::PortsExhausted,
        DropReason::StoreRefused,
        DropReason::StoreUnavailable,
        DropReason::Contention,
    ] {
        assert!(reasons.contains_key(&reason), "{reason} never came up: {reasons:?}");
    }
}
