//! L4 load balancer: flows of outside clients to a virtual endpoint go to one of its backends.
//!
//! The first packet of a flow chooses by a Maglev table over a keyed hash of the flow, and the
//! choice is kept in the store, so it holds whatever happens to the table, the nodes and the other
//! backends (property L1). Two entries are made in one transaction: the choice, and what the
//! backend's answers need, for they name the client but not the virtual endpoint. Both keys have
//! the client's endpoint in them, which is what steers such a chain, so both lie in one slot.
//!
//! A choice is kept as long as its backend stands in the configuration; weight 0 drains a backend:
//! it keeps its flows and gets no more. When a backend is removed, its flows, and only its, choose
//! anew (L2). A node whose configuration is older than the one a choice was made under believes the
//! choice, so two nodes of different configurations do not undo each other (L3).
//!
//! A TCP segment from the middle of a flow that has no entry chooses too, as Katran does: the table
//! very likely gives the backend that has the connection, and one that has not will reset it. A
//! reset chooses nothing. What it never does: translate a client's address; choose for an ICMP
//! error; touch packets that are neither to a virtual endpoint nor from a backend.
//!
//! ```text
//! byte  0                 16         18     24           32
//!       address           port       zero   epoch        zero
//!       16, IPv4-mapped   2, network 6      8, LE        32
//! ```
//!
//! In `balance` the endpoint is the backend, in `balance-reply` the virtual endpoint. The epoch is
//! that of the configuration that chose.

#[cfg(test)]
mod tests;

use crate::maglev::{BACKENDS_MAX, Maglev, Share, TABLE_SIZE, is_usable_size};
use crate::nf::state_key::{self, KeyKind};
use crate::nf::tcp_state::Segment;
use crate::nf::timeouts::Timeouts;
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet::parsed::Transport;
use crate::siphash::{HashKey, siphash};
use crate::verdict::{DropReason, Verdict};
use nearstate_placement::Side;
use nearstate_store::key::VALUE_BYTES;
use nearstate_store::{
    Address, Condition, Endpoint, Entry, Fill, Key, Time, Value, Version, Write,
};
use thiserror::Error;

/// Services that one balancer may have.
pub const SERVICES_MAX: usize = 256;

/// A virtual endpoint and who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// TCP (6) or UDP (17).
    pub protocol: u8,
    /// What clients talk to.
    pub address: Endpoint,
    /// Who answers. Weight 0 drains.
    pub backends: Vec<Share>,
}

/// What all services share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balancing {
    /// Keys the hash of flows; the same on all nodes.
    pub seed: u64,
    /// Rises with every change of the services.
    pub epoch: u64,
    /// Places of a table, a prime.
    pub table_size: u32,
}

impl Default for Balancing {
    fn default() -> Self {
        Self { seed: 0, epoch: 0, table_size: TABLE_SIZE }
    }
}

/// Services that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoadBalancerError {
    /// Too many.
    #[error("a load balancer has at most {SERVICES_MAX} services, this one has {0}")]
    Services(usize),
    /// Too many backends.
    #[error("service {service} has {count} backends, at most {BACKENDS_MAX} are possible")]
    Backends {
        /// Which service.
        service: Endpoint,
        /// Its backends.
        count: usize,
    },
    /// A table of this size would not be even.
    #[error("a table cannot have {0} places: give a prime from 1009 to 1000003, such as 65537")]
    TableSize(u32),
    /// Two services at one virtual endpoint.
    #[error("two services have the address {0} and one protocol")]
    ServiceTwice(Endpoint),
    /// A backend's answers would belong to two services.
    #[error("backend {0} stands twice; its answers could not be told apart: use another port")]
    BackendTwice(Endpoint),
    /// A packet cannot change its IP version.
    #[error("backend {backend} and service {service} are not of one IP version")]
    Family {
        /// The backend.
        backend: Endpoint,
        /// The service.
        service: Endpoint,
    },
    /// A service behind a service.
    #[error("{0} is a service's address, so it cannot be a backend")]
    BackendIsService(Endpoint),
}

/// What either entry of a balanced flow says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The backend, or the virtual endpoint.
    pub to: Endpoint,
    /// Epoch of the configuration that chose.
    pub epoch: u64,
}

impl Choice {
    /// The value of an entry.
    #[must_use]
    pub fn encode(self) -> Value {
        let mut bytes = [0; VALUE_BYTES];
        bytes[..18].copy_from_slice(&self.to.to_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        Value::from_bytes(&bytes)
    }

    /// Reads a value of [`Choice::encode`].
    #[must_use]
    pub fn decode(value: &Value) -> Self {
        let bytes = value.to_bytes();
        let mut to = [0; 18];
        to.copy_from_slice(&bytes[..18]);
        Self { to: Endpoint::from_bytes(&to), epoch: value.0[3] }
    }
}

#[derive(Clone, Debug)]
struct Table {
    protocol: u8,
    address: Endpoint,
    /// Sorted by endpoint.
    backends: Vec<Share>,
    maglev: Maglev,
}

/// The load balancer.
#[derive(Clone, Debug)]
pub struct LoadBalancer {
    /// Sorted by protocol and address.
    services: Vec<Table>,
    /// Protocol and endpoint of every backend, sorted.
    backends: Vec<(u8, Endpoint)>,
    hash_key: HashKey,
    epoch: u64,
    timeouts: Timeouts,
}

impl LoadBalancer {
    /// Most conditions that one packet asks for.
    pub const CONDITIONS_MAX: usize = 1;
    /// Most writes that one packet asks for.
    pub const WRITES_MAX: usize = 3;

    /// A balancer of these services.
    ///
    /// # Errors
    /// Says what cannot be served.
    pub fn new(
        mut services: Vec<Service>,
        balancing: Balancing,
    ) -> Result<Self, LoadBalancerError> {
        if services.len() > SERVICES_MAX {
            return Err(LoadBalancerError::Services(services.len()));
        }
        if !is_usable_size(balancing.table_size) {
            return Err(LoadBalancerError::TableSize(balancing.table_size));
        }
        services.sort_unstable_by_key(|service| (service.protocol, service.address));
        for service in &mut services {
            service.backends.sort_unstable_by_key(|share| share.endpoint);
        }
        let backends = check(&services)?;
        let table = |service: Service| Table {
            maglev: Maglev::new(&service.backends, balancing.table_size),
            protocol: service.protocol,
            address: service.address,
            backends: service.backends,
        };
        Ok(Self {
            services: services.into_iter().map(table).collect(),
            backends,
            hash_key: HashKey(balancing.seed, 0x6261_6c61_6e63_6572),
            epoch: balancing.epoch,
            timeouts: Timeouts::default(),
        })
    }

    /// The same balancer with other times. A choice lives as long as either direction sends; the
    /// balancer does not follow connections, so one of TCP has the time of an established one.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// The addresses of its services.
    pub fn addresses(&self) -> impl Iterator<Item = Address> + '_ {
        self.services.iter().map(|table| table.address.address)
    }

    /// Whether this is the end of a service.
    #[must_use]
    pub fn is_service(&self, protocol: u8, end: &Endpoint) -> bool {
        self.service(protocol, end).is_some()
    }

    fn service(&self, protocol: u8, address: &Endpoint) -> Option<&Table> {
        let wanted = (protocol, *address);
        let at =
            self.services.binary_search_by_key(&wanted, |table| (table.protocol, table.address));
        at.ok().map(|at| &self.services[at])
    }

    fn is_backend(&self, protocol: u8, endpoint: &Endpoint) -> bool {
        self.backends.binary_search(&(protocol, *endpoint)).is_ok()
    }

    /// Whether a choice still holds.
    fn holds(&self, service: &Table, choice: Choice) -> bool {
        let backends = &service.backends;
        choice.epoch > self.epoch
            || backends.binary_search_by_key(&choice.to, |share| share.endpoint).is_ok()
    }

    fn process_request(
        &self,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        let Some(service) = self.service(packet.tuple().protocol, &packet.tuple().destination)
        else {
            return Verdict::Forward;
        };
        let old = state.map(|entry| (Choice::decode(&entry.value), entry.version));
        if let Some((choice, _)) = old
            && self.holds(service, choice)
        {
            packet.tuple_mut().destination = choice.to;
            return Verdict::Forward;
        }
        match packet.parsed.transport {
            Transport::IcmpError { .. } => return Verdict::Drop(DropReason::IcmpUnrelated),
            Transport::Tcp { flags } if Segment::of(flags) == Segment::Reset => {
                return Verdict::Drop(DropReason::TcpMidstream);
            }
            _ => {}
        }
        let mut flow = [0; 37];
        flow[0] = packet.tuple().protocol;
        flow[1..19].copy_from_slice(&packet.tuple().source.to_bytes());
        flow[19..].copy_from_slice(&packet.tuple().destination.to_bytes());
        let Some(chosen) = service.maglev.choose(siphash(self.hash_key, &flow)) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        self.keep(packet, service.backends[chosen].endpoint, old, changes);
        packet.tuple_mut().destination = service.backends[chosen].endpoint;
        Verdict::Forward
    }

    /// Asks for the two entries of a choice, in place of an older one if there is one.
    fn keep(
        &self,
        packet: &Packet<'_>,
        backend: Endpoint,
        old: Option<(Choice, Version)>,
        changes: &mut Changes,
    ) {
        let (tenant, protocol) = (packet.tenant, packet.tuple().protocol);
        let (client, service) = (packet.tuple().source, packet.tuple().destination);
        let key = state_key::balance(tenant, protocol, client, service);
        let reply = |backend| state_key::balance_reply(tenant, protocol, client, backend);
        match old {
            None => changes.conditions.push(Condition::Absent(key)),
            Some((choice, version)) => {
                changes.conditions.push(Condition::Version(key, version));
                changes.writes.push(Write::Delete(reply(choice.to)));
            }
        }
        for (key, to) in [(key, backend), (reply(backend), service)] {
            let value = Choice { to, epoch: self.epoch }.encode();
            let ttl_s = self.timeouts.of_protocol(protocol);
            changes.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s });
        }
    }
}

impl NetworkFunction for LoadBalancer {
    fn name(&self) -> &'static str {
        "load-balancer"
    }

    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        let (tenant, tuple) = (packet.tenant, packet.tuple());
        let (protocol, source, destination) = (tuple.protocol, tuple.source, tuple.destination);
        match packet.side {
            Side::Outside => self
                .service(protocol, &destination)
                .map(|_| state_key::balance(tenant, protocol, source, destination)),
            Side::Inside => self
                .is_backend(protocol, &source)
                .then(|| state_key::balance_reply(tenant, protocol, destination, source)),
        }
    }

    fn process(
        &self,
        _now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        match (packet.side, state) {
            (Side::Outside, _) => self.process_request(packet, state, changes),
            // Of a flow that the balancer never saw: the backend's own, or routed to it directly.
            (Side::Inside, None) => Verdict::Forward,
            (Side::Inside, Some(entry)) => {
                packet.tuple_mut().source = Choice::decode(&entry.value).to;
                Verdict::Forward
            }
        }
    }

    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String {
        let (client, other) = key.ends();
        let choice = entry.map(|entry| Choice::decode(&entry.value));
        match (KeyKind::of(key), choice) {
            (Some(KeyKind::Balance), Some(Choice { to, epoch })) => {
                format!("client {client} of {other} goes to backend {to}, by configuration {epoch}")
            }
            (Some(KeyKind::Balance), None) => format!("client {client} of {other} has no backend"),
            (Some(KeyKind::BalanceReply), Some(Choice { to, .. })) => {
                format!("backend {other} answers client {client} as {to}")
            }
            (Some(KeyKind::BalanceReply), None) => {
                format!("backend {other} has no balanced flow with {client}")
            }
            _ => format!("{key:?} is not an entry of the load balancer"),
        }
    }
}

/// Checks sorted services, and gives the sorted backends of all of them.
fn check(services: &[Service]) -> Result<Vec<(u8, Endpoint)>, LoadBalancerError> {
    let id = |service: &Service| (service.protocol, service.address);
    if let Some(pair) = services.windows(2).find(|pair| id(&pair[0]) == id(&pair[1])) {
        return Err(LoadBalancerError::ServiceTwice(pair[0].address));
    }
    let mut all = vec![];
    for service in services {
        let (service_address, count) = (service.address, service.backends.len());
        if count > BACKENDS_MAX {
            return Err(LoadBalancerError::Backends { service: service_address, count });
        }
        for Share { endpoint, .. } in &service.backends {
            if endpoint.ipv4().is_some() != service_address.ipv4().is_some() {
                return Err(LoadBalancerError::Family {
                    backend: *endpoint,
                    service: service_address,
                });
            }
            let wanted = (service.protocol, *endpoint);
            if services.binary_search_by_key(&wanted, id).is_ok() {
                return Err(LoadBalancerError::BackendIsService(*endpoint));
            }
            all.push(wanted);
        }
    }
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(LoadBalancerError::BackendTwice(pair[0].1)),
        None => Ok(all),
    }
}
