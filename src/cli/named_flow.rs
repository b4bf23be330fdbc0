//! A flow as it is named on the command line, the keys under which network functions may know of
//! it, and who holds their entries.

use super::asked::Asked;
use clap::Args;
use nearstate_nf_node::nf::state_key;
use nearstate_placement::store_api::{HeldEntry, StoreRequest, StoreResponse};
use nearstate_placement::{FlowTuple, Map};
use nearstate_store::{Endpoint, Key, TenantId};
use std::net::SocketAddr;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A flow, or one end of it.
#[derive(Debug, Args)]
pub(super) struct NamedFlow {
    /// The protocol: tcp, udp, icmp or its number
    #[arg(value_name = "PROTOCOL", value_parser = protocol)]
    pub(super) protocol: u8,
    /// One end of the flow; for ICMP the port is the identifier
    #[arg(value_name = "IP:PORT")]
    pub(super) one: SocketAddr,
    /// The other end
    #[arg(value_name = "IP:PORT")]
    pub(super) other: Option<SocketAddr>,
    /// Whose flow it is
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) tenant: u16,
}

/// An endpoint as it is said.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip(), address.port())
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        number => number.parse().map_err(|_| "give tcp, udp, icmp, icmpv6 or a number".to_owned()),
    }
}

impl NamedFlow {
    /// The protocol under which a NAT keeps the flow's mapping: that of IPv4, if hosts inside have
    /// IPv6.
    pub(super) const fn mapped_protocol(&self) -> u8 {
        if self.protocol == ICMPV6 { ICMP } else { self.protocol }
    }

    /// All keys under which network functions may know of the flow.
    pub(super) fn keys(&self) -> Vec<Key> {
        let (tenant, mapped) = (TenantId(self.tenant), self.mapped_protocol());
        let (a, b) = (endpoint(self.one), self.other.map(endpoint));
        // ICMP of IPv6 is ICMPv6, however it is said.
        let protocol = match mapped {
            ICMP if self.one.is_ipv6() => ICMPV6,
            protocol => protocol,
        };
        let mut keys = Vec::new();
        for one in [Some(a), b].into_iter().flatten() {
            keys.push(state_key::nat_out(tenant, mapped, one));
            keys.push(state_key::nat_in(tenant, mapped, one));
        }
        if let Some(b) = b {
            let tuple = FlowTuple { protocol, source: a, destination: b };
            keys.push(state_key::firewall(tenant, &tuple));
            for (client, server) in [(a, b), (b, a)] {
                keys.push(state_key::balance(tenant, protocol, client, server));
                keys.push(state_key::balance_reply(tenant, protocol, client, server));
            }
        }
        keys
    }
}

/// An entry, and the node that holds it.
pub(super) type Holding = (String, HeldEntry);

/// Asks every living member. Gives also who did not answer.
pub(super) fn holdings(asked: &Asked, map: &Map, keys: &[Key]) -> (Vec<Holding>, Vec<String>) {
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    let request = StoreRequest::Get(keys.to_vec());
    for member in map.members.iter().filter(|member| member.state.is_live()) {
        match asked.ask_at(member.address, &request) {
            Ok(StoreResponse::Get(held)) => {
                // A node answers with what it was asked for, or is not believed.
                let held = held.into_iter().filter(|held| keys.contains(&held.key));
                found.extend(held.map(|held| (member.label(), held)));
            }
            _ => silent.push(member.label()),
        }
    }
    (found, silent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_over_ipv6_is_looked_for_under_both_of_its_protocols() {
        let (one, other) = ("[2001:db8::5]:7", "[2001:db8:64::c000:201]:7");
        let flow = |protocol| NamedFlow {
            protocol,
            one: one.parse().unwrap(),
            other: Some(other.parse().unwrap()),
            tenant: 3,
        };
        let keys = flow(ICMP).keys();
        assert_eq!(keys, flow(ICMPV6).keys());
        let inside = endpoint(one.parse().unwrap());
        assert!(keys.contains(&state_key::nat_out(TenantId(3), ICMP, inside)));
        let source = inside;
        let destination = endpoint(other.parse().unwrap());
        let tuple = FlowTuple { protocol: ICMPV6, source, destination };
        assert!(keys.contains(&state_key::firewall(TenantId(3), &tuple)));
    }
}
