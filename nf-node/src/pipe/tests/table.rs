//! One row a case: what the store does, which packets come, what becomes of them, and the counters
//! that moved, all of them.

use super::world::{
    OnRead, OnSubmit, Script, Toy, World, port_of, run_dry, toy_frame, toy_pipe, turn,
};
use crate::frame::Burst;
use crate::verdict::DropReason;
use nearstate_store::Refusal;
use std::collections::VecDeque;

const LONG: u64 = 1 << 40;
const HERE: OnRead = OnRead::Here { lease_ns: LONG };
const LATER: OnRead = OnRead::Later { after_ns: 1000, lease_ns: LONG };
const COMMIT: OnSubmit = OnSubmit::Decide { after_ns: 1000 };
const LOSE: OnSubmit = OnSubmit::Fail { after_ns: 1000 };

/// Answers in order, then the last of them for ever.
struct InOrder {
    reads: VecDeque<OnRead>,
    submits: VecDeque<OnSubmit>,
    clock_ns: VecDeque<u64>,
}

fn next<T: Copy>(queue: &mut VecDeque<T>, otherwise: T) -> T {
    match queue.len() {
        0 => otherwise,
        1 => queue[0],
        _ => queue.pop_front().unwrap(),
    }
}

impl Script for InOrder {
    fn on_read(&mut self) -> OnRead {
        next(&mut self.reads, HERE)
    }

    fn on_submit(&mut self) -> OnSubmit {
        next(&mut self.submits, COMMIT)
    }

    fn on_clock(&mut self) -> u64 {
        next(&mut self.clock_ns, 0)
    }
}

/// A packet: flow, number, whether it marks; and its end: the last mark it saw, or a reason.
type PacketRow = (u8, u16, bool, Result<u64, DropReason>);

struct Row {
    what: &'static str,
    toys: &'static [Toy],
    parked_max: usize,
    reads: &'static [OnRead],
    submits: &'static [OnSubmit],
    clock_ns: &'static [u64],
    packets: &'static [PacketRow],
    counters: &'static str,
}

const PLAIN: Row = Row {
    what: "",
    toys: &[Toy::Flow],
    parked_max: 8,
    reads: &[],
    submits: &[],
    clock_ns: &[],
    packets: &[],
    counters: "",
};

const ROWS: &[Row] = &[
    Row {
        what: "a packet that changes nothing leaves at once",
        packets: &[(0, 1, false, Ok(0))],
        counters: "packets_in=1 packets_out=1 access:local=1",
        ..PLAIN
    },
    Row {
        what: "a packet that changes state leaves after the commit",
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 parked_most=1 access:local=2",
        ..PLAIN
    },
    Row {
        what: "a change whose outcome is forgotten took effect: a look at the state tells",
        submits: &[OnSubmit::Forgotten { applied: true }, COMMIT],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 refusals=1 retries=1 parked_most=1 access:local=2",
        ..PLAIN
    },
    Row {
        what: "a change whose outcome is forgotten was lost: it is asked for again",
        submits: &[OnSubmit::Forgotten { applied: false }, COMMIT],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 refusals=1 retries=1 parked_most=1 \
                   access:local=3",
        ..PLAIN
    },
    Row {
        what: "later packets of the flow wait for the change, another flow does not",
        packets: &[
            (0, 1, true, Ok(1)),
            (0, 2, false, Ok(1)),
            (2, 1, false, Ok(0)),
            (0, 4, true, Ok(4)),
        ],
        counters: "packets_in=4 packets_out=4 commits=2 waits_behind=2 parked_most=3 \
                   access:local=4",
        ..PLAIN
    },
    Row {
        what: "a far entry is waited for, and packets behind it read it together",
        reads: &[LATER],
        packets: &[(0, 1, false, Ok(0)), (0, 2, false, Ok(0)), (0, 3, false, Ok(0))],
        counters: "packets_in=3 packets_out=3 waits_behind=2 waits_for_read=2 parked_most=3 \
                   access:remote_tcp=2",
        ..PLAIN
    },
    Row {
        what: "two far entries are asked for one after the other",
        toys: &[Toy::Flow, Toy::Host],
        reads: &[LATER],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 waits_for_read=4 parked_most=1 \
                   access:remote_tcp=4",
        ..PLAIN
    },
    Row {
        what: "order holds for a chain whose first function has no state",
        toys: &[Toy::Blind, Toy::Flow],
        packets: &[(0, 1, true, Ok(1)), (0, 2, false, Ok(1))],
        counters: "packets_in=2 packets_out=2 commits=1 waits_behind=1 parked_most=2 \
                   access:local=2",
        ..PLAIN
    },
    Row {
        what: "a condition that fails leads to another reading",
        submits: &[LOSE, COMMIT],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 conditions_failed=1 parked_most=1 \
                   access:local=3",
        ..PLAIN
    },
    Row {
        what: "contention is bounded",
        submits: &[LOSE],
        packets: &[(0, 1, true, Err(DropReason::Contention)), (0, 2, false, Ok(0))],
        counters: "packets_in=2 packets_out=1 conditions_failed=8 waits_behind=1 parked_most=2 \
                   access:local=9 drop:contention=1",
        ..PLAIN
    },
    Row {
        what: "no port is left",
        submits: &[OnSubmit::Refuse(Refusal::PoolEmpty)],
        packets: &[(0, 1, true, Err(DropReason::PortsExhausted))],
        counters: "packets_in=1 refusals=1 parked_most=1 access:local=1 drop:ports-exhausted=1",
        ..PLAIN
    },
    Row {
        what: "the quota is used up",
        submits: &[OnSubmit::Refuse(Refusal::QuotaReached)],
        packets: &[(0, 1, true, Err(DropReason::QuotaReached))],
        counters: "packets_in=1 refusals=1 parked_most=1 access:local=1 drop:quota-reached=1",
        ..PLAIN
    },
    Row {
        what: "the table is full",
        submits: &[OnSubmit::Refuse(Refusal::TableFull)],
        packets: &[(0, 1, true, Err(DropReason::TableFull))],
        counters: "packets_in=1 refusals=1 parked_most=1 access:local=1 drop:table-full=1",
        ..PLAIN
    },
    Row {
        what: "a transaction that makes no sense",
        submits: &[OnSubmit::Refuse(Refusal::Malformed)],
        packets: &[(0, 1, true, Err(DropReason::StoreRefused))],
        counters: "packets_in=1 refusals=1 parked_most=1 access:local=1 drop:store-refused=1",
        ..PLAIN
    },
    Row {
        what: "an old map is asked again",
        submits: &[OnSubmit::Refuse(Refusal::NotThisSlot), COMMIT],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 refusals=1 retries=1 parked_most=1 \
                   access:local=3",
        ..PLAIN
    },
    Row {
        what: "a full queue is tried again",
        submits: &[OnSubmit::Full, COMMIT],
        packets: &[(0, 1, true, Ok(1))],
        counters: "packets_in=1 packets_out=1 commits=1 retries=1 parked_most=1 access:local=3",
        ..PLAIN
    },
    Row {
        what: "no answer to a transaction: dropped, and what it did is seen by the next",
        submits: &[OnSubmit::Unknown { applied: true }],
        packets: &[(0, 1, true, Err(DropReason::StoreUnavailable)), (0, 2, false, Ok(1))],
        counters: "packets_in=2 packets_out=1 waits_behind=1 parked_most=2 access:local=2 \
                   drop:store-unavailable=1",
        ..PLAIN
    },
    Row {
        what: "a read that cannot be asked for, and one that fails, are tried again",
        reads: &[OnRead::Unavailable, OnRead::LaterFailed { after_ns: 5 }, HERE],
        packets: &[(0, 1, false, Ok(0))],
        counters: "packets_in=1 packets_out=1 waits_for_read=1 retries=2 parked_most=1 \
                   access:local=1",
        ..PLAIN
    },
    Row {
        what: "a store that stays away is given up, in order, ten quick tries and then slow ones",
        reads: &[OnRead::Unavailable],
        packets: &[
            (0, 1, false, Err(DropReason::StoreUnavailable)),
            (0, 2, false, Err(DropReason::StoreUnavailable)),
        ],
        counters: "packets_in=2 waits_behind=1 retries=676 parked_most=2 \
                   drop:store-unavailable=2",
        ..PLAIN
    },
    Row {
        what: "a read that is never answered is given up",
        reads: &[OnRead::NeverAnswered, HERE],
        packets: &[(0, 1, false, Err(DropReason::StoreUnavailable)), (0, 2, false, Ok(0))],
        counters: "packets_in=2 packets_out=1 waits_behind=1 waits_for_read=1 parked_most=2 \
                   access:local=1 drop:store-unavailable=1",
        ..PLAIN
    },
    Row {
        what: "a lease that ends between read and release leads to another reading",
        reads: &[OnRead::Here { lease_ns: 10 }, HERE],
        clock_ns: &[11, 0],
        packets: &[(0, 1, false, Ok(0))],
        counters: "packets_in=1 packets_out=1 leases_over=1 parked_most=1 access:local=2",
        ..PLAIN
    },
    Row {
        what: "a lease may be used until its last nanosecond",
        reads: &[OnRead::Here { lease_ns: 10 }],
        clock_ns: &[10, 0],
        packets: &[(0, 1, false, Ok(0))],
        counters: "packets_in=1 packets_out=1 access:local=1",
        ..PLAIN
    },
    Row {
        what: "behind a late packet all of the burst is done again; before it, nothing",
        reads: &[HERE, OnRead::Here { lease_ns: 10 }, HERE],
        clock_ns: &[11, 0],
        packets: &[(2, 1, false, Ok(0)), (0, 1, false, Ok(0)), (0, 2, false, Ok(0))],
        counters: "packets_in=3 packets_out=3 leases_over=1 parked_most=1 access:local=5",
        ..PLAIN
    },
    Row {
        what: "a late packet that must wait now does not let the next of its flow pass, nor is \
               the answer that the next one had asked for given to the wrong one",
        reads: &[OnRead::Here { lease_ns: 10 }, LATER, OnRead::Unavailable, HERE],
        clock_ns: &[11, 0],
        packets: &[(0, 1, false, Ok(0)), (0, 2, true, Ok(2))],
        counters: "packets_in=2 packets_out=2 commits=1 waits_behind=1 retries=1 leases_over=1 \
                   stale_completions=1 parked_most=2 access:local=3",
        ..PLAIN
    },
    Row {
        what: "leases that end again and again become waits, and in the end a drop",
        reads: &[OnRead::Here { lease_ns: 10 }],
        clock_ns: &[100_000_000],
        packets: &[(0, 1, false, Err(DropReason::StoreUnavailable))],
        counters: "packets_in=1 retries=4 leases_over=21 parked_most=1 access:local=21 \
                   drop:store-unavailable=1",
        ..PLAIN
    },
    Row {
        what: "parking is bounded; what needs none is not hurt",
        parked_max: 1,
        packets: &[
            (0, 1, true, Ok(1)),
            (2, 1, true, Err(DropReason::ParkingFull)),
            (0, 2, false, Err(DropReason::ParkingFull)),
            (4, 1, false, Ok(0)),
        ],
        counters: "packets_in=4 packets_out=2 commits=1 parked_most=1 access:local=4 \
                   drop:parking-full=2",
        ..PLAIN
    },
    Row {
        what: "a function's drop is a drop with its reason, after the change that it hangs on",
        packets: &[
            (0, 3, true, Err(DropReason::RuleDenied)),
            (0, 4, false, Err(DropReason::RuleDenied)),
        ],
        counters: "packets_in=2 commits=1 waits_behind=1 parked_most=2 access:local=2 \
                   drop:rule-denied=2",
        ..PLAIN
    },
];

#[test]
fn packets_end_as_the_table_says() {
    for row in ROWS {
        let script = InOrder {
            reads: row.reads.iter().copied().collect(),
            submits: row.submits.iter().copied().collect(),
            clock_ns: row.clock_ns.iter().copied().collect(),
        };
        let (mut pipe, mut shared) = toy_pipe(row.toys, World::new(script), row.parked_max);
        let frames = row.packets.iter().zip(0..).map(|(p, tag)| toy_frame(tag, p.0, p.1, p.2));
        let mut burst: Burst = frames.collect();
        turn(&mut pipe, &mut shared, &mut burst);
        run_dry(&mut pipe, &mut shared);
        for (tag, (flow, number, _, expected)) in row.packets.iter().enumerate() {
            let end = shared.0.borrow().ends[&(tag as u64)].map(|tuple| tuple.destination.port);
            let what = format!("{}: flow {flow} number {number}", row.what);
            assert_eq!(end, expected.map(port_of), "{what}");
        }
        assert_eq!(pipe.counters().snapshot().to_string(), row.counters, "{}", row.what);
    }
}

#[test]
fn a_port_without_room_makes_a_counted_drop_of_fast_and_of_parked_packets() {
    let script = InOrder { reads: [].into(), submits: [].into(), clock_ns: [].into() };
    let mut world = World::new(script);
    world.room = 1;
    let (mut pipe, mut shared) = toy_pipe(&[Toy::Flow], world, 8);
    let frames = [(0, false), (2, false), (4, true)];
    let mut burst: Burst =
        (0..).zip(frames).map(|(tag, (flow, marks))| toy_frame(tag, flow, 1, marks)).collect();
    turn(&mut pipe, &mut shared, &mut burst);
    run_dry(&mut pipe, &mut shared);
    let words = "packets_in=3 packets_out=1 commits=1 parked_most=1 access:local=4 \
                 drop:output-full=2";
    assert_eq!(pipe.counters().snapshot().to_string(), words);
}

#[test]
fn a_frame_that_is_no_packet_is_dropped_with_the_reason_that_parsing_gave() {
    let (mut pipe, mut shared) = toy_pipe(
        &[Toy::Flow],
        World::new(InOrder { reads: [].into(), submits: [].into(), clock_ns: [].into() }),
        1,
    );
    let mut short = toy_frame(0, 0, 1, false);
    short.len = 10;
    let mut burst: Burst = [short, toy_frame(1, 0, 1, false)].into_iter().collect();
    turn(&mut pipe, &mut shared, &mut burst);
    assert_eq!(shared.0.borrow().ends[&0], Err(DropReason::ShortEthernet));
    assert!(shared.0.borrow().ends[&1].is_ok());
    let words = "packets_in=2 packets_out=1 access:local=1 drop:short-ethernet=1";
    assert_eq!(pipe.counters().snapshot().to_string(), words);
}
