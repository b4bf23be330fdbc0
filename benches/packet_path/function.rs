//! The functions that are measured: their chains, and the packets of their flows. Mappings live for
//! an hour, so that none ends while ten millions are made and measured.

use crate::cluster::Shape;
use crate::traffic::{SHORT, Traffic, shuffled};
use nearstate_nf_node::packet::PacketBuilder;
use nearstate_nf_node::pipe::SteeredChain;
use nearstate_nf_node::{Chain, ChainConfig};
use nearstate_placement::Side;
use nearstate_store::Endpoint;
use std::error::Error;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Slots of the cluster.
pub(crate) const SLOTS: u32 = 1024;
/// Flows of one inside host: their ports fit into one block.
const FLOWS_PER_HOST: u32 = 50;
/// What stands in a chain for the external addresses.
const POOL: &str = "POOL";

/// What the packets of its flows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packets {
    /// IPv4 from inside.
    Inside,
    /// IPv6 from inside, to somebody behind the prefix.
    Inside6,
    /// IPv4 from outside, to a service.
    Outside,
}

/// One chain, as it is measured.
pub(crate) struct Function {
    /// How its rows' names begin.
    pub(crate) name: &'static str,
    chain: &'static str,
    packets: Packets,
    /// Entries that a flow has.
    entries: u32,
    /// Instructions that a packet may cost: what it does cost, and a tenth for other compilers.
    pub(crate) instructions_max: f64,
}

/// All of them.
pub(crate) const FUNCTIONS: [Function; 4] = [
    Function {
        name: "nat44",
        chain: "functions = [\"nat\"]\n[nat]\naddresses = [\"POOL\"]\n[timeouts]\nudp_s = 3600",
        packets: Packets::Inside,
        entries: 2,
        instructions_max: 1530.0,
    },
    Function {
        name: "nat64",
        chain: "functions = [\"nat64\"]\n[nat64]\nprefix = \"2001:db8:64::/96\"\n\
                addresses = [\"POOL\"]\n[timeouts]\nudp_s = 3600",
        packets: Packets::Inside6,
        entries: 2,
        instructions_max: 2200.0,
    },
    Function {
        name: "firewall",
        chain: "functions = [\"firewall\"]\n[firewall]",
        packets: Packets::Inside,
        entries: 1,
        instructions_max: 1400.0,
    },
    Function {
        name: "lb",
        chain: "functions = [\"load-balancer\"]\n[load_balancer]\n\
                [[load_balancer.service]]\nprotocol = \"udp\"\naddress = \"203.0.113.80:53\"\n\
                backends = [{ endpoint = \"10.9.0.1:53\" }, { endpoint = \"10.9.0.2:53\" }]",
        packets: Packets::Outside,
        entries: 2,
        instructions_max: 1660.0,
    },
];

/// The function that most rows are about.
pub(crate) const NAT44: &Function = &FUNCTIONS[0];

impl Function {
    /// Its chain, and the store for so many flows.
    pub(crate) fn chain(
        &self,
        flows: u32,
        shape: Shape,
    ) -> Result<(SteeredChain, Shape), Box<dyn Error>> {
        let text = self.chain.replace(POOL, external_addresses(flows));
        let config: ChainConfig = toml::from_str(&text)?;
        let chain = SteeredChain::new(Arc::new(Chain::new(&config, SLOTS)?), 7);
        // Four fifths full.
        let capacity = flows * self.entries / 4 * 5;
        let pools = chain.chain().pools().to_vec();
        Ok((chain, Shape { capacity, pools, ..shape }))
    }

    /// The shortest packets of all flows, in random order.
    pub(crate) fn packets(&self, flows: u32) -> Traffic {
        let mut traffic = Traffic::with_capacity(flows as usize);
        for flow in shuffled(flows) {
            traffic.push(self.side(), &self.packet(flow, SHORT));
        }
        traffic
    }

    /// Where its packets come from.
    const fn side(&self) -> Side {
        match self.packets {
            Packets::Inside | Packets::Inside6 => Side::Inside,
            Packets::Outside => Side::Outside,
        }
    }

    /// A UDP packet of a flow whose frame has this length.
    pub(crate) fn packet(&self, flow: u32, len: usize) -> Vec<u8> {
        let (host, number) = (flow / FLOWS_PER_HOST, flow % FLOWS_PER_HOST);
        let [_, b, c, d] = host.to_be_bytes();
        let port = 2000 + number as u16;
        let (source, destination, headers) = match self.packets {
            Packets::Inside => {
                (Endpoint::v4([10, b, c, d], port), Endpoint::v4([192, 0, 2, 1], 53), 42)
            }
            Packets::Inside6 => {
                let [high, low] = [(host >> 16) as u16, host as u16];
                let host = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, high, low);
                let server = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0xc000, 0x0201);
                let server = Endpoint::new(IpAddr::V6(server), 53);
                (Endpoint::new(IpAddr::V6(host), port), server, 62)
            }
            Packets::Outside => {
                (Endpoint::v4([100, b, c, d], port), Endpoint::v4([203, 0, 113, 80], 53), 42)
            }
        };
        let bytes =
            PacketBuilder::udp(source, destination).payload(&vec![0; len - headers]).build();
        assert_eq!(bytes.len(), len, "headers of {headers} bytes");
        bytes
    }
}

/// Addresses with room for so many flows: each host's block has to be free in the run of its slot,
/// and slots have no equal numbers of hosts. All are 126 blocks a slot but the largest.
const fn external_addresses(flows: u32) -> &'static str {
    if flows <= 1 << 21 { "198.18.0.0/25" } else { "198.18.0.0/23" }
}
