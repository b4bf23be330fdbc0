//! Bad inputs 53 to 57: what is used up, what is not to be had, what turns round.

use super::super::nat::{pipe_in, send_at};
use super::*;
use crate::chain::Chain;
use nearstate_store::Time;
use std::collections::BTreeMap;

fn after(s: u64) -> Time {
    Time(NOW.0 + s * 1_000_000_000)
}

/// The how-many-th subscriber.
fn subscriber(number: u32) -> Endpoint {
    let [_, _, c, d] = number.to_be_bytes();
    Endpoint::v4([10, 1, c, d], 1000)
}

/// Bad input 53: a pool that all together have used up. The new are refused, the old keep theirs,
/// and what comes back is not given out at once (RFC 6888 REQ-8). That of one subscriber:
/// `who_has_used_up_its_ports_gets_no_more_and_keeps_what_it_has`.
#[test]
fn bad_input_53_a_pool_that_is_used_up_and_free_again() {
    // 1008 blocks in 512 slots: two for the subscribers of a slot, and a few have three.
    let chain = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0\"]";
    let mut pipe = pipe_in(chain, (512, 4000), 64);
    let ask = |number| (OUT, PacketBuilder::udp(subscriber(number), DNS).build());
    let mut external = BTreeMap::new();
    let mut refused = vec![];
    for number in 0..1000 {
        let ends = send(&mut pipe, &[ask(number)]);
        match ends.dropped[..] {
            [] => {
                let end = ends.left[0].2.tuple.source;
                assert_eq!(external.insert(end, number), None, "{end} has two holders");
            }
            [(0, DropReason::PortsExhausted)] => refused.push(number),
            ref other => panic!("{other:?}"),
        }
    }
    assert!(refused.len() > 50 && external.len() > 500, "{} are refused", refused.len());
    let live = |pipe: &mut Pipe<Baseline>| pipe.access_mut().machine().pool_check().unwrap();
    assert_eq!(live(&mut pipe).live, external.len() as u64);
    for (end, number) in &external {
        let ends = send(&mut pipe, &[ask(*number)]);
        assert_eq!(ends.left[0].2.tuple.source, *end, "the old keep theirs");
    }
    let exhausted = [(0, DropReason::PortsExhausted)];
    let first = refused[0];
    assert_eq!(send(&mut pipe, &[ask(first)]).dropped, exhausted);
    // All have ended; what they had rests, and then is free.
    let expire = |pipe: &mut Pipe<Baseline>, s| {
        while pipe.on_completions(after(s), &mut Ends::default()) > 0 {}
    };
    (302..312).for_each(|s| expire(&mut pipe, s));
    let report = live(&mut pipe);
    assert_eq!((report.live, report.resting), (0, external.len() as u64));
    assert_eq!(send_at(&mut pipe, after(312), &[ask(first)]).dropped, exhausted);
    assert_eq!(send_at(&mut pipe, after(440), &[ask(first)]).left.len(), 1);
    let report = live(&mut pipe);
    assert_eq!((report.live, report.resting), (1, 0));
}

/// Bad input 54, port shadow: nobody inside gets an end that is somebody else's, whatever port it
/// binds and whomever it talks to; nor one of the NAT's own services, which have ports below 1024
/// or are outside the pool.
#[test]
fn bad_input_54_nobody_shadows_the_port_of_another() {
    let chain = format!(
        "{NAT}\nstatic = [{{ external = \"198.19.0.1:443\", inside = \"10.0.0.5:8443\", \
         protocol = \"tcp\" }}]"
    );
    let mut rig = Rig::new(&chain);
    let service = Endpoint::v4([198, 19, 0, 1], 443);
    let mut ends = BTreeMap::from([(rig.tcp, HOST)]);
    for number in 2..60 {
        for port in [rig.tcp.port, service.port, 443, 4500] {
            let shadow = Endpoint::v4([10, 0, 0, number], port);
            for remote in [WEB, STRANGER] {
                let syn = PacketBuilder::tcp(shadow, remote).flags(SYN).build();
                let left = rig.send(OUT, syn).left[0].2.tuple.source;
                let holder = *ends.entry(left).or_insert(shadow);
                assert_eq!(holder, shadow, "{left} belongs to {holder}");
                assert!(left.port >= 1024 && left != service);
            }
        }
    }
    // From outside each still is whose it was.
    let syn = PacketBuilder::tcp(STRANGER, service).flags(SYN).build();
    let inside = rig.send(IN, syn).left[0].2.tuple.destination;
    assert_eq!(inside, Endpoint::v4([10, 0, 0, 5], 8443));
    rig.goes_on();
    // And nobody may say that it is one of them.
    rig.check(&[service, NOBODY].map(|own| {
        let syn = PacketBuilder::tcp(own, WEB).flags(SYN).build();
        (54, "its own end as a source", OUT, syn, Drop(DropReason::NatSource))
    }));
}

/// Bad input 55: a packet turns round once at most, and ends.
#[test]
fn bad_input_55_nothing_turns_round_for_ever() {
    let mut rig = Rig::new(NAT);
    let udp = |a, b| from(PacketBuilder::udp, (a, b));
    let turned = Endpoint { port: 9, ..rig.udp };
    let rows = [
        (55, "to its own mapping", OUT, udp(HOST, rig.udp), Drop(DropReason::MartianAddress)),
        (55, "to nobody's end", OUT, udp(HOST, NOBODY), Drop(DropReason::NoMapping)),
        (55, "from an end to an end", OUT, udp(rig.udp, NOBODY), Drop(DropReason::NatSource)),
        (55, "the same from outside", IN, udp(rig.udp, rig.udp), Drop(DropReason::MartianAddress)),
        (55, "as if it had turned round", IN, udp(turned, rig.udp), Drop(DropReason::NatSource)),
    ];
    let before = rig.counts();
    rig.check(&rows);
    let turned = rig.counts().event(Event::Hairpins) - before.event(Event::Hairpins);
    assert_eq!(turned, 2, "the first two, once each");
    // And a guest is let through to the host, in one turn.
    let guest = Endpoint::v4([10, 0, 0, 2], 2000);
    let ends = rig.send(OUT, udp(guest, rig.udp));
    let [(_, OUT, parsed)] = ends.left[..] else { panic!("{:?}", ends.dropped) };
    assert_eq!(parsed.tuple.destination, HOST);
    assert_eq!(rig.counts().event(Event::Hairpins) - before.event(Event::Hairpins), 3);
}

/// Bad input 56: very many mappings for one destination, none like another. (A million of them are
/// in `cargo bench --bench packet_path`.)
#[test]
fn bad_input_56_many_mappings_to_one_destination() {
    const COUNT: u32 = 40_000;
    let mut pipe = pipe_in(NAT, (64, 3 * COUNT), 64);
    let mut ends = BTreeMap::new();
    let packet = |number: u32| {
        let host = subscriber(number / 40);
        let from = Endpoint { port: 1024 + (number % 40) as u16, ..host };
        (from, (OUT, PacketBuilder::udp(from, DNS).build()))
    };
    for first in (0..COUNT).step_by(32) {
        let numbers = first..(first + 32).min(COUNT);
        let burst: Vec<_> = numbers.clone().map(|number| packet(number).1).collect();
        let sent = send(&mut pipe, &burst);
        assert!(sent.dropped.is_empty(), "{first}: {:?}", sent.dropped);
        for (tag, _, parsed) in sent.left {
            let inside = packet(first + tag as u32).0;
            assert_eq!(ends.insert(parsed.tuple.source, inside), None);
        }
    }
    assert_eq!(ends.len(), COUNT as usize);
    for (external, inside) in ends.iter().step_by(97) {
        let answer = (IN, PacketBuilder::udp(DNS, *external).build());
        assert_eq!(send(&mut pipe, &[answer]).left[0].2.tuple.destination, *inside);
    }
    assert_eq!(pipe.access_mut().machine().pool_check().unwrap().live, u64::from(COUNT));
}

/// Bad input 57: what is inside is not outside. Said by the configuration it is refused (RFC 4787
/// REQ-7: external addresses are configured); in packets, see bad input 13.
#[test]
fn bad_input_57_an_inside_prefix_that_holds_external_addresses() {
    let rows = [
        ("inside = [\"198.16.0.0/12\"]", "", Some("198.19.0.0 lies in 198.16.0.0/12")),
        ("inside = [\"198.19.0.15\"]", "", Some("198.19.0.15 lies in 198.19.0.15")),
        ("inside = [\"198.19.0.16/28\"]", "", None),
        (
            "inside = [\"203.0.113.0/24\"]",
            "static = [{ external = \"203.0.113.9\", inside = \"10.0.0.9\" }]",
            Some("203.0.113.9 lies in 203.0.113.0/24"),
        ),
    ];
    let nat = "functions = [\"nat\"]";
    for (inside, exceptions, message) in rows {
        let text = format!("{nat}\n{inside}\n[nat]\naddresses = [\"198.19.0.0/28\"]\n{exceptions}");
        let made = Chain::new(&toml::from_str(&text).unwrap(), 64);
        match message {
            None => assert!(made.is_ok(), "{inside}"),
            Some(message) => {
                let error = made.expect_err(inside).to_string();
                assert!(error.contains(message), "{inside}: {error}");
            }
        }
    }
    let many = vec!["\"10.0.0.0/8\""; crate::source_check::INSIDE_PREFIXES_MAX + 1].join(", ");
    let text = format!("{nat}\ninside = [{many}]\n[nat]\naddresses = [\"198.19.0.0/28\"]");
    let error = Chain::new(&toml::from_str(&text).unwrap(), 64).expect_err("too many");
    assert!(error.to_string().contains("inside has 65 prefixes"), "{error}");
}
