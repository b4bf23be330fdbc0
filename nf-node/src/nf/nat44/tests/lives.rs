//! How long a mapping of TCP lives, segment by segment.

use super::*;

const OTHER: &str = "198.51.100.9:443";

/// What it is about, and segments with the seconds that the mapping lives after each.
type Row = (&'static str, &'static [(Side, u8, &'static str, u32)]);

const LIVES: &[Row] = &[
    (
        "opened, closed by the inside, reopened",
        &[
            (IN, 0x12, WEB, 240),
            (OUT, ACK, WEB, 7440),
            (OUT, FIN, WEB, 7440),
            (IN, ACK, WEB, 7440),
            (IN, FIN, WEB, 240),
            (OUT, ACK, WEB, 240),
            (OUT, SYN, WEB, 240),
            (OUT, ACK, WEB, 7440),
        ],
    ),
    (
        "closed by the remote end, then the same port to another",
        &[
            (OUT, ACK, WEB, 7440),
            (IN, FIN, WEB, 7440),
            (OUT, FIN, WEB, 240),
            (OUT, SYN, OTHER, 240),
            (IN, FIN, WEB, 240),
            (OUT, ACK, OTHER, 7440),
            (OUT, FIN, OTHER, 7440),
            (IN, FIN, OTHER, 240),
        ],
    ),
    (
        "resets of either end; what the inside sends after one from outside undoes it",
        &[
            (OUT, RST, WEB, 240),
            (OUT, ACK, WEB, 7440),
            (IN, RST, WEB, 240),
            (IN, ACK, WEB, 240),
            (OUT, ACK, WEB, 7440),
            (OUT, RST, WEB, 240),
        ],
    ),
    (
        "a stranger's segments move nothing",
        &[
            (IN, FIN, OTHER, 240),
            (OUT, ACK, WEB, 7440),
            (IN, FIN, OTHER, 7440),
            (IN, RST, OTHER, 7440),
            (IN, SYN, OTHER, 7440),
            (OUT, RST, OTHER, 7440),
        ],
    ),
    (
        "one port to many: half-open connections of a scan, then one that lives",
        &[
            (OUT, SYN, OTHER, 240),
            (IN, RST, OTHER, 240),
            (OUT, ACK, OTHER, 7440),
            (OUT, RST, OTHER, 7440),
            (IN, RST, WEB, 7440),
        ],
    ),
];

/// R5382-5, R7857-1, R7857-2, R7857-3, N10: the seconds that a mapping lives after each segment.
#[test]
fn the_connection_of_a_mapping_says_how_long_it_lives() {
    for (what, steps) in LIVES {
        let chain = chain();
        let mut store = TestStore::new(&chain);
        let external = store.send(&chain, OUT, &tcp(SYN, H, WEB)).0.unwrap().source;
        let key = state_key::nat_out(TenantId(0), 6, end(H));
        assert_eq!(store.lifetimes[&key], 240);
        for (number, (side, flags, remote, ttl_s)) in steps.iter().enumerate() {
            let packet = match side {
                Side::Inside => tcp(*flags, H, remote),
                Side::Outside => tcp(*flags, remote, &external.to_string()),
            };
            let (sent, changes) = store.send(&chain, *side, &packet);
            assert!(sent.is_ok(), "R7857-3: everything is translated; {what}, step {number}");
            assert!(!takes(&changes));
            assert_eq!(store.lifetimes[&key], *ttl_s, "{what}, step {number}");
            let back = &store.entries[&state_key::nat_in(TenantId(0), 6, external)];
            let (there, back) =
                (Mapping::decode(&store.entries[&key].value), Mapping::decode(&back.value));
            assert_eq!((there.life, there.remote), (back.life, back.remote), "both say the same");
        }
    }
}
