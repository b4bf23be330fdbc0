//! A flow as it is named on the command line, the keys under which network functions may know of
//! it, and who holds their entries.

use super::asked::Asked;
use clap::Args;
use nearstate_nf_node::nf::state_key;
use nearstate_placement::store_api::{HeldEntry, StoreRequest, StoreResponse};
use nearstate_placement::{FlowTuple, Map};
use nearstate_store::{Endpoint, Key, TenantId};
use std::net::SocketAddr;

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
    /// All keys under which network functions may know of the flow.
    pub(super) fn keys(&self) -> Vec<Key> {
        let (tenant, protocol) = (TenantId(self.tenant), self.protocol);
        let (a, b) = (endpoint(self.one), self.other.map(endpoint));
        let mut keys = Vec::new();
        for one in [Some(a), b].into_iter().flatten() {
            keys.push(state_key::nat_out(tenant, protocol, one));
            keys.push(state_key::nat_in(tenant, protocol, one));
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
