//! What does not go the plain way: hairpinning, static mappings, destinations left alone.

use super::*;

fn exceptional(extra: &str) -> Chain {
    let text = format!("functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/24\"]\n{extra}");
    Chain::new(&toml::from_str(&text).unwrap(), SLOTS).unwrap()
}

/// Through the NAT, and through it again as from outside if the packet goes to an end of its own.
fn send_round(
    store: &mut TestStore,
    chain: &Chain,
    packet: &Parsed,
) -> (bool, Result<FlowTuple, DropReason>) {
    let sent = match store.send(chain, OUT, packet).0 {
        Ok(sent) if chain.turns_round(OUT, &sent) => sent,
        sent => return (false, sent),
    };
    (true, store.send(chain, IN, &parsed(packet.transport, sent)).0)
}

/// R4787-9, R4787-9a, R5382-8, R5508-7, R5508-7a: two hosts behind one NAT, by external ends.
#[test]
fn hairpinned_packets_carry_external_sources_and_errors_about_them_find_back() {
    let chain = chain();
    let (mut store, external) = mapped(&chain);
    let guest = "10.0.0.2:5000";
    for (protocol, external) in [(6, external[0]), (17, external[1])] {
        let packet = |from: &str, to: Endpoint| match protocol {
            6 => tcp(SYN, from, &to.to_string()),
            _ => udp(from, &to.to_string()),
        };
        let (turned, sent) = send_round(&mut store, &chain, &packet(guest, external));
        let FlowTuple { source, destination, .. } = sent.unwrap();
        assert!(turned && destination == end(H), "it goes to the holder of the external end");
        assert!(chain.pools()[0].holds(source.ipv4().unwrap()), "R4787-9a: {source}");
        let again = send_round(&mut store, &chain, &packet(guest, external));
        assert_eq!(again, (true, sent));
        // The answer goes the same way back.
        let answer = match protocol {
            6 => tcp(0x12, H, &source.to_string()),
            _ => udp(H, &source.to_string()),
        };
        let (turned, answered) = send_round(&mut store, &chain, &answer);
        let answered = answered.unwrap();
        assert!(turned);
        assert_eq!((answered.source, answered.destination), (external, end(guest)));
        // The holder refuses it: the error quotes what it got, and the guest sees what it sent.
        let refusal = error(protocol, H, &source.to_string());
        let (turned, told) = send_round(&mut store, &chain, &refusal);
        let told = told.unwrap();
        assert!(turned && (told.source, told.destination) == (external, end(guest)), "R5508-7a");
    }
}

/// Bad inputs 53 to 55: what turns round finds nobody, or itself, and ends there.
#[test]
fn hairpinned_packets_that_are_for_nobody_end_and_none_goes_in_circles() {
    let chain = chain();
    let (mut store, external) = mapped(&chain);
    let nobody = "198.19.0.200:60000";
    let (turned, sent) = send_round(&mut store, &chain, &udp("10.0.0.2:5", nobody));
    assert_eq!((turned, sent), (true, Err(DropReason::NoMapping)));
    let (turned, sent) = send_round(&mut store, &chain, &udp("10.0.0.2:5", "198.19.0.1:53"));
    assert_eq!((turned, sent), (true, Err(DropReason::NoMapping)), "a port of the NAT's own");
    // What has turned round once goes inside, wherever that is.
    let inwards = udp("198.19.0.7:4000", &external[1].to_string());
    let sent = store.send(&chain, IN, &inwards).0.unwrap();
    assert!(!chain.turns_round(IN, &sent) && sent.destination == end(H));
    let forged = udp(&external[1].to_string(), &external[0].to_string());
    assert_eq!(store.send(&chain, OUT, &forged).0, Err(DropReason::NatSource));
}

/// R6888-6.
#[test]
fn given_destinations_are_reached_untranslated_and_nothing_is_kept_of_that() {
    let chain = exceptional("untranslated = [\"10.0.0.0/8\", \"192.0.2.7\", \"198.19.0.0/16\"]");
    let mut store = TestStore::new(&chain);
    for to in ["10.9.9.9:80", "192.0.2.7:80", "198.19.1.1:80"] {
        for packet in [tcp(SYN, H, to), tcp(ACK, H, to), udp(H, to), error(17, H, to)] {
            assert_eq!(store.send(&chain, OUT, &packet).0, Ok(packet.tuple), "{to}");
            let answer = FlowTuple { ..packet.tuple.reversed() };
            let answer = parsed(packet.transport, answer);
            assert_eq!(store.send(&chain, IN, &answer).0, Ok(answer.tuple), "{to}");
        }
    }
    assert!(store.entries.is_empty());
    for to in ["192.0.2.8:80", "198.19.0.9:80"] {
        let sent = store.send(&chain, OUT, &udp(H, to)).0.unwrap();
        assert_ne!(sent.source, end(H), "{to}: translated, its own ends always are");
    }
}

/// Static mappings and port forwarding: both directions, all protocols of a whole address.
#[test]
fn static_mappings_translate_both_ways_without_state() {
    let chain = exceptional(
        "filtering = \"address-and-port-dependent\"\n\
         static = [{ external = \"203.0.113.9\", inside = \"10.0.0.9\" }, \
         { external = \"198.19.0.1:443\", inside = \"10.0.0.5:8443\", protocol = \"tcp\" }]",
    );
    let mut store = TestStore::new(&chain);
    let ping = |from: &str, to: &str| echo(true, from, to);
    // From outside to where, inside.
    let rows = [
        (tcp(SYN, WEB, "198.19.0.1:443"), "10.0.0.5:8443"),
        (udp(WEB, "203.0.113.9:53"), "10.0.0.9:53"),
        (tcp(ACK, WEB, "203.0.113.9:22"), "10.0.0.9:22"),
        (ping("192.0.2.1:7", "203.0.113.9:7"), "10.0.0.9:7"),
        (error(17, WEB, "203.0.113.9:53"), "10.0.0.9:53"),
        (error(6, WEB, "198.19.0.1:443"), "10.0.0.5:8443"),
    ];
    for (packet, inside) in rows {
        let FlowTuple { protocol, source, destination } = packet.tuple;
        let sent = store.send(&chain, IN, &packet).0.unwrap();
        assert_eq!((sent.source, sent.destination), (source, end(inside)), "{packet:?}");
        let answer = parsed(packet.transport, FlowTuple { protocol, ..sent.reversed() });
        let answered = store.send(&chain, OUT, &answer).0.unwrap();
        assert_eq!((answered.source, answered.destination), (destination, source), "{packet:?}");
    }
    assert!(store.entries.is_empty(), "they are configuration, not state");
    let refused = store.send(&chain, IN, &udp(WEB, "198.19.0.1:443")).0;
    assert_eq!(refused, Err(DropReason::NoMapping), "the other protocol");
    let other = store.send(&chain, OUT, &tcp(SYN, "10.0.0.5:1000", WEB)).0.unwrap().source;
    assert!(chain.pools()[0].holds(other.ipv4().unwrap()) && other.port >= 1024, "its other ports");
    // From inside to a static end, and of a static end to a dynamic one.
    for to in ["198.19.0.1:443", "203.0.113.9:80"] {
        let (turned, sent) = send_round(&mut store, &chain, &tcp(SYN, "10.0.0.2:1000", to));
        let sent = sent.unwrap();
        assert!(turned && sent.source.ipv4().is_some_and(|a| chain.pools()[0].holds(a)), "{sent}");
    }
}
