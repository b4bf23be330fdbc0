//! Rules: what is parsed, what is refused and why, and what matches.

use super::*;
use proptest::prelude::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tuple(protocol: u8, source: &str, destination: &str) -> FlowTuple {
    let end = |text: &str| {
        let socket: core::net::SocketAddr = text.parse().unwrap();
        Endpoint::new(socket.ip(), socket.port())
    };
    FlowTuple { protocol, source: end(source), destination: end(destination) }
}

#[test]
fn rules_print_as_they_are_written() {
    let lines = [
        "allow out tcp from 10.0.0.0/8 to any port 80-443",
        "deny in any",
        "allow in icmp",
        "allow in udp from 192.0.2.7 port 53 to 10.0.0.0/24 port 1024-65535",
        "allow out any to 2001:db8::/32",
        "deny out tcp from any port 25",
        "allow in any from 0.0.0.0/0",
    ];
    for line in lines {
        assert_eq!(rule(line).to_string(), line);
    }
    // Written in another way, they print in the one way.
    assert_eq!(rule("  deny   in tcp port 22 ").to_string(), "deny in tcp to any port 22");
    assert_eq!(rule("deny in tcp from any to any").to_string(), "deny in tcp");
    assert_eq!(rule("deny in tcp to 192.0.2.1/32").to_string(), "deny in tcp to 192.0.2.1");
}

#[test]
fn a_wrong_rule_says_which_word() {
    let rows = [
        ("", "the rule ends after word 0; 'allow' or 'deny' is missing"),
        ("permit in any", "word 1, 'permit', is wrong: a rule begins with 'allow' or 'deny'"),
        ("allow", "the rule ends after word 1; 'in' or 'out' is missing"),
        ("allow through any", "word 2, 'through', is wrong: the direction is 'in' or 'out'"),
        ("allow in", "the rule ends after word 2; a protocol is missing"),
        (
            "allow in sctp",
            "word 3, 'sctp', is wrong: the protocol is 'any', 'tcp', 'udp' or 'icmp'",
        ),
        ("allow in tcp from", "the rule ends after word 4; 'any', an address or a prefix"),
        ("allow in tcp from here", "word 5, 'here', is wrong: 'here' is not an IP address"),
        (
            "allow in tcp from 10.0.0.0/33",
            "word 5, '10.0.0.0/33', is wrong: a prefix of this family has at most 32 bits",
        ),
        ("allow in tcp from 10.0.0.0/x", "'x' is not a prefix length"),
        ("allow in tcp to 10.0.0.1/8", "10.0.0.1 has bits set behind the first 8"),
        ("allow in tcp to any port 0", "word 7, '0', is wrong: ports are 1 to 65535"),
        ("allow in tcp port 90-80", "word 5, '90-80', is wrong"),
        ("allow in tcp port 65536", "word 5, '65536', is wrong"),
        ("allow in tcp port", "the rule ends after word 4; a port or a range of ports"),
        ("allow in tcp port 1 port 2", "word 6, 'port', is wrong: this end has its ports already"),
        ("allow in icmp port 7", "word 4, 'port', is wrong: only 'tcp' and 'udp' have ports"),
        ("allow in any to any from any", "word 6, 'from', is wrong: 'from' and 'to' stand once"),
        ("allow in any quickly", "word 4, 'quickly', is wrong: expected 'from', 'to' or 'port'"),
    ];
    for (line, message) in rows {
        let error = line.parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains(message), "{line:?}: {error}");
    }
    let long = format!("allow in any{}", " ".repeat(RULE_TEXT_MAX));
    assert_eq!(long.parse::<Rule>(), Err(RuleError::TooLong(RULE_TEXT_MAX + 12)));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = RuleSet::parse(&[
        "deny out tcp to 192.0.2.0/24 port 25",
        "allow out tcp from 10.0.0.0/8 to any port 1-1023",
        "deny out tcp",
        "allow in icmp",
        "allow in tcp to 2001:db8::/32 port 443",
        "allow in udp from any port 53",
    ])
    .unwrap();
    let (inside, outside) = (Side::Inside, Side::Outside);
    use Action::{Allow, Deny};
    let rows = [
        (inside, tuple(6, "10.0.0.1:999", "192.0.2.9:25"), Some(Deny)),
        (inside, tuple(6, "10.0.0.1:999", "192.0.3.9:25"), Some(Allow)),
        (inside, tuple(6, "11.0.0.1:999", "192.0.3.9:25"), Some(Deny)),
        (inside, tuple(6, "10.0.0.1:999", "192.0.3.9:1024"), Some(Deny)),
        (inside, tuple(17, "10.0.0.1:999", "192.0.2.9:25"), None),
        (outside, tuple(6, "10.0.0.1:999", "192.0.2.9:25"), None),
        (outside, tuple(1, "192.0.2.9:4", "10.0.0.1:4"), Some(Allow)),
        (outside, tuple(58, "[2001:db8::1]:4", "[2001:db8::2]:4"), Some(Allow)),
        (outside, tuple(6, "[2001:dead::1]:4", "[2001:db8:7::2]:443"), Some(Allow)),
        (outside, tuple(6, "[2001:dead::1]:4", "[2001:db9::2]:443"), None),
        (outside, tuple(17, "192.0.2.9:53", "10.0.0.1:4000"), Some(Allow)),
        (outside, tuple(17, "192.0.2.9:54", "10.0.0.1:4000"), None),
    ];
    for (side, tuple, decision) in rows {
        assert_eq!(rules.decide(side, &tuple), decision, "{side:?} {tuple}");
    }
}

#[test]
fn an_ipv4_prefix_of_no_bits_holds_ipv4_only() {
    let any4 = rule("allow in any from 0.0.0.0/0");
    assert!(any4.matches(Side::Outside, &tuple(17, "192.0.2.1:1", "10.0.0.1:1")));
    assert!(!any4.matches(Side::Outside, &tuple(17, "[2001:db8::1]:1", "[2001:db8::2]:1")));
    let any6 = rule("allow in any from ::/0");
    assert!(any6.matches(Side::Outside, &tuple(17, "[2001:db8::1]:1", "[2001:db8::2]:1")));
}

#[test]
fn a_list_names_the_wrong_rule_and_has_a_limit() {
    let error = RuleSet::parse(&["allow out any", "deny on any"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "firewall rule 2 ('deny on any'): word 2, 'on', is wrong: the direction is 'in' or 'out'"
    );
    let many = vec!["allow out any"; RULES_MAX + 1];
    assert_eq!(RuleSet::parse(&many), Err(RuleSetError::TooMany(RULES_MAX + 1)));
    assert_eq!(RuleSet::parse(&many[1..]).unwrap().rules().len(), RULES_MAX);
}

fn any_end() -> impl Strategy<Value = RuleEnd> {
    let v4 = (any::<u32>(), 0u8..=32).prop_map(|(bits, length)| {
        let mask = if length == 0 { 0 } else { u32::MAX << (32 - length) };
        Prefix::new(IpAddr::V4((bits & mask).into()), length).unwrap()
    });
    let v6 = (any::<u128>(), 0u8..=128).prop_map(|(bits, length)| {
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
        Prefix::new(IpAddr::V6((bits & mask).into()), length).unwrap()
    });
    let ports = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| (a.min(b), a.max(b)));
    (proptest::option::of(prop_oneof![v4, v6]), proptest::option::of(ports))
        .prop_map(|(prefix, ports)| RuleEnd { prefix, ports })
}

proptest! {
    #[test]
    fn what_a_rule_prints_is_read_back_as_the_same_rule(
        deny: bool, out: bool, tcp: bool, source in any_end(), destination in any_end(),
    ) {
        let rule = Rule {
            action: if deny { Action::Deny } else { Action::Allow },
            side: if out { Side::Inside } else { Side::Outside },
            protocol: if tcp { RuleProtocol::Tcp } else { RuleProtocol::Udp },
            source,
            destination,
        };
        let text = rule.to_string();
        prop_assert_eq!(text.parse::<Rule>(), Ok(rule), "{}", text);
    }

    #[test]
    fn no_text_is_too_strange_to_be_refused(text in "\\PC{0,300}") {
        let _ = text.parse::<Rule>();
    }

    #[test]
    fn no_row_of_words_is_too_strange(words in proptest::collection::vec(
        prop_oneof![
            Just("allow"), Just("deny"), Just("in"), Just("out"), Just("any"), Just("tcp"),
            Just("from"), Just("to"), Just("port"), Just("1-2"), Just("-"), Just("10.0.0.0/8"),
            Just("::/0"), Just("/"),
        ], 0..12)
    ) {
        let text = words.join(" ");
        if let Ok(rule) = text.parse::<Rule>() {
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }
    }
}
