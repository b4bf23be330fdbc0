//! How long state lives that nobody uses, by what it is for.
//!
//! One set of times for all functions of a chain, so that a mapping and the flow that uses it end
//! together. What the RFCs forbid to shorten cannot be configured shorter.

use crate::chain_config::ChainConfigError;
use nearstate_store::lifetimes::TTL_MAX_S;
use nearstate_store::upkeep::{SOFT_STATE_MS, SoftTerms};
use serde::{Deserialize, Serialize};

/// The shortest time for UDP (RFC 4787 REQ-5).
pub const UDP_S_MIN: u32 = 120;
/// The shortest time for established TCP connections (RFC 5382 REQ-5).
pub const TCP_ESTABLISHED_S_MIN: u32 = 7440;
/// The shortest time for TCP connections that open or close (RFC 5382 REQ-5, RFC 7857 section 2).
pub const TCP_TRANSITORY_S_MIN: u32 = 240;
/// The shortest time for ICMP queries (RFC 5508 REQ-2).
pub const ICMP_S_MIN: u32 = 60;
/// The longest time within which all replicas know what was seen.
pub const SEEN_WITHIN_MS_MAX: u32 = 60_000;

/// The section `[timeouts]` of a chain's configuration. Seconds since the last packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// UDP flows and mappings, and a balancer's UDP flows. At least 120 (RFC 4787 REQ-5), by
    /// default 300 (REQ-5c).
    pub udp_s: u32,
    /// TCP connections after their handshake, and a balancer's TCP flows. At least 7440.
    pub tcp_established_s: u32,
    /// TCP connections before the end of the handshake, and after a FIN or a reset. At least 240.
    pub tcp_transitory_s: u32,
    /// ICMP queries. At least 60.
    pub icmp_s: u32,
    /// Milliseconds within which what was seen is known to all replicas, and within eight times of
    /// which what was counted is. At least 1000.
    pub seen_within_ms: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp_s: 300,
            tcp_established_s: TCP_ESTABLISHED_S_MIN,
            tcp_transitory_s: TCP_TRANSITORY_S_MIN,
            icmp_s: ICMP_S_MIN,
            seen_within_ms: SOFT_STATE_MS as u32,
        }
    }
}

impl Timeouts {
    /// Whether all are long enough, and none too long.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), ChainConfigError> {
        let rows = [
            ("udp_s", self.udp_s, UDP_S_MIN, TTL_MAX_S),
            ("tcp_established_s", self.tcp_established_s, TCP_ESTABLISHED_S_MIN, TTL_MAX_S),
            ("tcp_transitory_s", self.tcp_transitory_s, TCP_TRANSITORY_S_MIN, TTL_MAX_S),
            ("icmp_s", self.icmp_s, ICMP_S_MIN, TTL_MAX_S),
            ("seen_within_ms", self.seen_within_ms, SOFT_STATE_MS as u32, SEEN_WITHIN_MS_MAX),
        ];
        match rows.into_iter().find(|(_, found, least, most)| !(least..=most).contains(&found)) {
            None => Ok(()),
            Some((key, found, least, most)) => {
                Err(ChainConfigError::Timeout { key, found, least, most })
            }
        }
    }

    /// For state of a protocol that has no phases, or whose phases nobody follows.
    #[must_use]
    pub const fn of_protocol(&self, protocol: u8) -> u32 {
        match protocol {
            6 => self.tcp_established_s,
            1 | 58 => self.icmp_s,
            _ => self.udp_s,
        }
    }

    /// What the store may lose of soft state.
    #[must_use]
    pub const fn soft(&self) -> SoftTerms {
        SoftTerms { within_ms: self.seen_within_ms as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_rfcs_forbid_is_refused_and_the_least_is_not() {
        let good = Timeouts::default();
        assert!(good.check().is_ok());
        assert!(Timeouts { udp_s: 120, ..good }.check().is_ok());
        let rows = [
            (Timeouts { udp_s: 119, ..good }, "udp_s is 119; it must be 120 to 1048575"),
            (Timeouts { tcp_established_s: 7439, ..good }, "tcp_established_s is 7439"),
            (Timeouts { tcp_transitory_s: 239, ..good }, "tcp_transitory_s is 239"),
            (Timeouts { icmp_s: 59, ..good }, "icmp_s is 59"),
            (Timeouts { udp_s: 1 << 20, ..good }, "udp_s is 1048576"),
            (Timeouts { seen_within_ms: 999, ..good }, "seen_within_ms is 999"),
        ];
        for (timeouts, message) in rows {
            let error = timeouts.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
