//! A chain: the functions that a tenant's packets pass, in order.
//!
//! From inside they are passed in the order of the configuration, from outside in the reverse, so
//! every function sees the same addresses of a flow in both directions. All functions of a chain
//! keep a packet's state in the slot that the chain's affinity gives it, so what they ask for is
//! one transaction. A chain holds no state and is shared by all pipes; it never waits: a pipe
//! drives the stages itself and parks packets in between, [`Chain::run`] is for callers whose reads
//! answer at once.

#[cfg(test)]
mod tests;

use crate::chain_config::{
    AddressRange, ChainConfig, ChainConfigError, FirewallConfig, FunctionName, LoadBalancerConfig,
    Nat64Config, NatConfig,
};
use crate::frame::Frame;
use crate::maglev::Share;
use crate::nf::firewall::Firewall;
use crate::nf::load_balancer::{Balancing, LoadBalancer, Service};
use crate::nf::nat_filter::NatFilter;
use crate::nf::nat44::{Nat44, UNTRANSLATED_MAX};
use crate::nf::nat64::{Ipv6Inside, Nat64};
use crate::nf::rules::{Prefix, RuleSet};
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet::parsed::{IpVersion, Parsed};
use crate::packet::translation;
use crate::rewrite;
use crate::source_check::{INSIDE_PREFIXES_MAX, SourceCheck};
use crate::static_config::StaticConfig;
use crate::verdict::{DropReason, Verdict};
use nearstate_placement::{Affinity, FlowTuple, Side, StaticMap, StaticMapping, Steering};
use nearstate_store::pool_spec::FIRST_PORT;
use nearstate_store::transaction::{CONDITIONS_MAX, WRITES_MAX};
use nearstate_store::{Address, Endpoint, Entry, Key, PoolId, PoolSpec, SoftTerms, TenantId, Time};

/// The pool of a chain's NAT.
const NAT_POOL: PoolId = PoolId(0);
/// The pool of its NAT64.
const NAT64_POOL: PoolId = PoolId(1);

// A function stands once in a chain, NAT and balancer are never in one chain, and what one NAT
// translates the other lets pass: so a packet asks for no more than the firewall and one of them
// together.
const _: () = assert!(
    Firewall::CONDITIONS_MAX + NatFilter::CONDITIONS_MAX + Nat44::CONDITIONS_MAX <= CONDITIONS_MAX
);
const _: () = assert!(Firewall::CONDITIONS_MAX + LoadBalancer::CONDITIONS_MAX <= CONDITIONS_MAX);
const _: () =
    assert!(Firewall::WRITES_MAX + NatFilter::WRITES_MAX + Nat44::WRITES_MAX <= WRITES_MAX);
const _: () = assert!(Firewall::WRITES_MAX + LoadBalancer::WRITES_MAX <= WRITES_MAX);

/// The functions that translate inside hosts.
const NATS: [FunctionName; 2] = [FunctionName::Nat, FunctionName::Nat64];

/// The functions there are: a closed list, so that the packet path makes no indirect call.
#[derive(Clone, Debug)]
pub enum Function {
    /// The stateful firewall.
    Firewall(Firewall),
    /// What a NAT lets in.
    NatFilter(NatFilter),
    /// NAT44.
    Nat44(Nat44),
    /// What a NAT64 lets in.
    Nat64Filter(NatFilter<Ipv6Inside>),
    /// NAT64.
    Nat64(Nat64),
    /// The load balancer.
    LoadBalancer(LoadBalancer),
}

impl NetworkFunction for Function {
    fn name(&self) -> &'static str {
        match self {
            Self::Firewall(function) => function.name(),
            Self::NatFilter(function) => function.name(),
            Self::Nat44(function) => function.name(),
            Self::Nat64Filter(function) => function.name(),
            Self::Nat64(function) => function.name(),
            Self::LoadBalancer(function) => function.name(),
        }
    }

    // Always inlined: the five words of a key then go straight to where they are wanted.
    #[inline(always)]
    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        match self {
            Self::Firewall(function) => function.key(packet),
            Self::NatFilter(function) => function.key(packet),
            Self::Nat44(function) => function.key(packet),
            Self::Nat64Filter(function) => function.key(packet),
            Self::Nat64(function) => function.key(packet),
            Self::LoadBalancer(function) => function.key(packet),
        }
    }

    #[inline]
    fn process(
        &self,
        now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        match self {
            Self::Firewall(function) => function.process(now, packet, state, changes),
            Self::NatFilter(function) => function.process(now, packet, state, changes),
            Self::Nat44(function) => function.process(now, packet, state, changes),
            Self::Nat64Filter(function) => function.process(now, packet, state, changes),
            Self::Nat64(function) => function.process(now, packet, state, changes),
            Self::LoadBalancer(function) => function.process(now, packet, state, changes),
        }
    }

    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String {
        match self {
            Self::Firewall(function) => function.describe(key, entry),
            Self::NatFilter(function) => function.describe(key, entry),
            Self::Nat44(function) => function.describe(key, entry),
            Self::Nat64Filter(function) => function.describe(key, entry),
            Self::Nat64(function) => function.describe(key, entry),
            Self::LoadBalancer(function) => function.describe(key, entry),
        }
    }
}

/// The functions of a tenant's packets.
#[derive(Clone, Debug)]
pub struct Chain {
    tenant: TenantId,
    slots: u32,
    functions: Vec<Function>,
    pools: Vec<PoolSpec>,
    affinity: Affinity,
    soft: SoftTerms,
    /// Where in `functions` the NAT is.
    nat: Option<usize>,
    /// And the NAT64.
    nat64: Option<usize>,
    /// And the load balancer.
    balancer: Option<usize>,
    sources: SourceCheck,
}

impl Chain {
    /// The chain of this configuration in a cluster of `slots` slots.
    ///
    /// # Errors
    /// Says what is wrong with the configuration.
    pub fn new(config: &ChainConfig, slots: u32) -> Result<Self, ChainConfigError> {
        if !slots.is_power_of_two() || slots > 65_536 {
            return Err(ChainConfigError::Slots(slots));
        }
        check_functions(config)?;
        let timeouts = config.timeouts;
        timeouts.check()?;
        let mut functions = Vec::with_capacity(config.functions.len() + 1);
        let mut pools = vec![];
        for name in &config.functions {
            let missing = || ChainConfigError::NoSection(*name);
            let function = match name {
                FunctionName::Firewall => {
                    let firewall = firewall(config.firewall.as_ref())?;
                    Function::Firewall(firewall.with_timeouts(timeouts))
                }
                FunctionName::Nat => {
                    let section = config.nat.as_ref().ok_or_else(missing)?;
                    let nat = nat(section, slots)?.with_timeouts(timeouts);
                    pools.push(nat.pool().clone());
                    let filter = NatFilter::new(&nat, section.filtering, timeouts);
                    functions.extend(filter.map(Function::NatFilter));
                    Function::Nat44(nat)
                }
                FunctionName::Nat64 => {
                    let section = config.nat64.as_ref().ok_or_else(missing)?;
                    let nat = nat64(section, slots)?.with_timeouts(timeouts);
                    pools.push(nat.pool().clone());
                    let filter = NatFilter::new(&nat, section.filtering, timeouts);
                    functions.extend(filter.map(Function::Nat64Filter));
                    Function::Nat64(nat)
                }
                FunctionName::LoadBalancer => {
                    let section = config.load_balancer.as_ref().ok_or_else(missing)?;
                    Function::LoadBalancer(load_balancer(section)?.with_timeouts(timeouts))
                }
            };
            functions.push(function);
        }
        let (affinity, soft) = (affinity(&config.functions), timeouts.soft());
        let nat = functions.iter().position(|function| matches!(function, Function::Nat44(_)));
        let nat64 = functions.iter().position(|function| matches!(function, Function::Nat64(_)));
        let balancer =
            functions.iter().position(|function| matches!(function, Function::LoadBalancer(_)));
        let tenant = TenantId(config.tenant);
        let sources = SourceCheck::new(vec![], &[]);
        let mut chain =
            Self { tenant, slots, functions, pools, affinity, soft, nat, nat64, balancer, sources };
        chain.check_nats()?;
        chain.sources = chain.source_check(&config.inside)?;
        Ok(chain)
    }

    /// What is looked at of sources.
    fn source_check(&self, inside: &[Prefix]) -> Result<SourceCheck, ChainConfigError> {
        if inside.len() > INSIDE_PREFIXES_MAX {
            return Err(ChainConfigError::Inside(inside.len()));
        }
        let pools = self.pools.iter().flat_map(|pool| pool.addresses());
        let static_map = self.static_map()?;
        let external = static_map.mappings().map(|mapping| mapping.external);
        let external = pools.copied().chain(external).map(|address| Address::v4(address.octets()));
        let mut own: Vec<Address> = external.collect();
        let overlaps = |own: &Address| Some((own.ip(), inside.iter().find(|p| p.holds(own))?));
        if let Some((external, inside)) = own.iter().find_map(overlaps) {
            return Err(ChainConfigError::OwnInside { external, inside: *inside });
        }
        own.extend(self.balancer().into_iter().flat_map(LoadBalancer::addresses));
        Ok(SourceCheck::new(inside.to_vec(), &own))
    }

    /// Whether two NATs of the chain never have the same external end.
    fn check_nats(&self) -> Result<(), ChainConfigError> {
        if let [one, other] = &self.pools[..]
            && let Some(address) = one.addresses().iter().find(|address| other.holds(**address))
        {
            return Err(ChainConfigError::PoolsOverlap(*address));
        }
        for mapping in self.static_mappings() {
            let is_given_out = mapping.port.is_none_or(|(_, external, _)| external >= FIRST_PORT);
            if is_given_out && self.pools.iter().any(|pool| pool.holds(mapping.external)) {
                return Err(ChainConfigError::Static {
                    external: mapping.external.to_string(),
                    why: "the pool of the other NAT gives out the ports of this address from 1024 \
                          on"
                    .to_owned(),
                });
            }
        }
        self.static_map().map(drop)
    }

    fn static_mappings(&self) -> impl Iterator<Item = StaticMapping> + '_ {
        let of_nat = self.nat().into_iter().flat_map(|nat| nat.static_map().mappings());
        let of_nat64 = self.nat64().into_iter().flat_map(|nat| nat.static_map().mappings());
        of_nat.chain(of_nat64)
    }

    /// The static mappings of all NATs.
    fn static_map(&self) -> Result<StaticMap, ChainConfigError> {
        let all: Vec<StaticMapping> = self.static_mappings().collect();
        Ok(StaticMap::new(&all)?)
    }

    /// The function that a packet from this side passes at this stage, counted from 0; `None`
    /// behind the last.
    #[must_use]
    #[inline]
    pub fn function(&self, side: Side, stage: usize) -> Option<&Function> {
        match side {
            Side::Inside => self.functions.get(stage),
            Side::Outside => {
                let at = self.functions.len().checked_sub(stage + 1)?;
                self.functions.get(at)
            }
        }
    }

    /// How many functions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether there are none; a configured chain has at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// What decides on a packet's slot.
    #[must_use]
    pub const fn affinity(&self) -> Affinity {
        self.affinity
    }

    /// Whose packets these are.
    #[must_use]
    pub const fn tenant(&self) -> TenantId {
        self.tenant
    }

    fn nat(&self) -> Option<&Nat44> {
        match self.functions.get(self.nat?)? {
            Function::Nat44(nat) => Some(nat),
            _ => None,
        }
    }

    fn nat64(&self) -> Option<&Nat64> {
        match self.functions.get(self.nat64?)? {
            Function::Nat64(nat) => Some(nat),
            _ => None,
        }
    }

    fn balancer(&self) -> Option<&LoadBalancer> {
        match self.functions.get(self.balancer?)? {
            Function::LoadBalancer(balancer) => Some(balancer),
            _ => None,
        }
    }

    /// Why a packet that arrives on this side must not come from where it says, if it must not.
    #[inline]
    #[must_use]
    pub fn refuses_source(&self, side: Side, frame: &[u8], parsed: &Parsed) -> Option<DropReason> {
        if self.sources.is_clear(side, parsed) {
            return None;
        }
        self.sources.judge(side, (frame, parsed), |protocol, end| self.is_own(protocol, end))
    }

    /// Whether this is an external end of the chain.
    fn is_own(&self, protocol: u8, end: &Endpoint) -> bool {
        self.nat().is_some_and(|nat| nat.is_own(protocol, end))
            || self.nat64().is_some_and(|nat| nat.is_own(protocol, end))
            || self.balancer().is_some_and(|balancer| balancer.is_service(protocol, end))
    }

    /// Makes a frame one of the flow that it is behind the chain.
    ///
    /// # Errors
    /// If it is to change its IP version and cannot.
    #[inline]
    pub fn rewrite(
        &self,
        frame: &mut Frame,
        parsed: &Parsed,
        tuple: &FlowTuple,
    ) -> Result<(), DropReason> {
        if translation::is_needed(parsed, tuple) {
            return self.translate(frame, parsed, tuple);
        }
        rewrite::apply(frame.as_mut_slice(), parsed, tuple);
        Ok(())
    }

    #[cold]
    fn translate(
        &self,
        frame: &mut Frame,
        parsed: &Parsed,
        tuple: &FlowTuple,
    ) -> Result<(), DropReason> {
        let Some(nat64) = self.nat64() else {
            debug_assert!(false, "only a NAT64 makes {tuple} of {}", parsed.tuple);
            return Err(DropReason::StoreRefused);
        };
        let prefix = &nat64.inside().prefix;
        frame.len = translation::translate(&mut frame.bytes[..], parsed, tuple, prefix)? as u16;
        Ok(())
    }

    /// Whether a packet that came in on this side, and is this flow behind the chain, comes back:
    /// it goes to an end of the chain's own NAT (hairpinning, RFC 4787 REQ-9). It is then taken in
    /// once more, as from outside.
    #[must_use]
    #[inline]
    pub fn turns_round(&self, side: Side, tuple: &FlowTuple) -> bool {
        let (protocol, to) = (tuple.protocol, &tuple.destination);
        side == Side::Inside
            && (self.nat().is_some_and(|nat| nat.is_own(protocol, to))
                || self.nat64().is_some_and(|nat| nat.is_own(protocol, to)))
    }

    /// Whether a fragment that came in on this side with these ends would have to cross the NAT64:
    /// later fragments cannot follow there, so it ends at once and makes no state.
    #[must_use]
    pub fn ends_fragment(&self, side: Side, tuple: &FlowTuple) -> bool {
        self.nat64().is_some_and(|nat| match side {
            Side::Inside => nat.inside().prefix.holds(&tuple.destination.address),
            Side::Outside => nat.is_own(tuple.protocol, &tuple.destination),
        })
    }

    /// The NAT's pools.
    #[must_use]
    pub fn pools(&self) -> &[PoolSpec] {
        &self.pools
    }

    /// What may be lost of its soft state.
    #[must_use]
    pub const fn soft(&self) -> SoftTerms {
        self.soft
    }

    /// Slots of the cluster.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The steering of this chain's packets.
    #[must_use]
    pub fn steering(&self, seed: u32) -> Steering {
        // They were together when the chain was made.
        let static_map = self.static_map().unwrap_or_default();
        Steering::new(seed, self.slots, self.affinity, self.pools.clone())
            .with_static_map(static_map)
    }

    /// A packet on its way into this chain; its translation goes to where it is told.
    #[must_use]
    pub fn packet<'a>(
        &self,
        side: Side,
        frame: &'a [u8],
        parsed: &'a Parsed,
        translated: &'a mut Option<FlowTuple>,
    ) -> Packet<'a> {
        Packet { frame, parsed, tenant: self.tenant, side, translated }
    }

    /// Takes a packet through all stages. `read` gives an entry of the packet's slot.
    ///
    /// The verdict and the tuple that the packet has behind the chain. [`Verdict::Commit`]:
    /// `changes` must be committed, then the packet is run again. Otherwise nothing was asked for.
    pub fn run(
        &self,
        now: Time,
        mut packet: Packet<'_>,
        read: &mut dyn FnMut(&Key) -> Option<Entry>,
        changes: &mut Changes,
    ) -> (Verdict, FlowTuple) {
        changes.clear();
        for stage in 0..self.functions.len() {
            let Some(function) = self.function(packet.side, stage) else { break };
            let entry = function.key(&packet).and_then(|key| read(&key));
            match function.process(now, &mut packet, entry.as_ref(), changes) {
                Verdict::Forward => {}
                Verdict::Commit => return (Verdict::Commit, *packet.tuple()),
                Verdict::Drop(reason) => {
                    changes.clear();
                    return (Verdict::Drop(reason), *packet.tuple());
                }
            }
        }
        let verdict = if changes.is_empty() { Verdict::Forward } else { Verdict::Commit };
        (verdict, *packet.tuple())
    }
}

/// A NAT's state lies with the inside host, because that is all that its mappings know of a flow.
fn affinity(functions: &[FunctionName]) -> Affinity {
    let is_nat = |function: &FunctionName| NATS.contains(function);
    if functions.iter().any(is_nat) {
        Affinity::InsideHost
    } else if functions.contains(&FunctionName::LoadBalancer) {
        Affinity::OutsideEndpoint
    } else {
        Affinity::FiveTuple
    }
}

fn check_functions(config: &ChainConfig) -> Result<(), ChainConfigError> {
    let functions = &config.functions;
    if functions.is_empty() {
        return Err(ChainConfigError::Empty);
    }
    let has = |function| functions.contains(&function);
    for function in FunctionName::ALL {
        if functions.iter().filter(|other| **other == function).count() > 1 {
            return Err(ChainConfigError::Twice(function));
        }
        let has_section = match function {
            FunctionName::Firewall => config.firewall.is_some(),
            FunctionName::Nat => config.nat.is_some(),
            FunctionName::Nat64 => config.nat64.is_some(),
            FunctionName::LoadBalancer => config.load_balancer.is_some(),
        };
        if has_section && !has(function) {
            return Err(ChainConfigError::UnusedSection(function));
        }
    }
    for nat in NATS {
        if has(nat) && has(FunctionName::LoadBalancer) {
            return Err(ChainConfigError::NatWithBalancer(nat));
        }
        // A NAT that needs a port ends a packet's round, so what comes behind it would ask in a
        // second round: not the one transaction that the contract of functions promises.
        let position = |function| functions.iter().position(|other| *other == function);
        let places = position(nat).zip(position(FunctionName::Firewall));
        if places.is_some_and(|(nat, firewall)| nat < firewall) {
            return Err(ChainConfigError::NatBeforeFirewall(nat));
        }
    }
    Ok(())
}

fn firewall(section: Option<&FirewallConfig>) -> Result<Firewall, ChainConfigError> {
    let Some(section) = section else {
        return Ok(Firewall::new(RuleSet::default(), 0));
    };
    Ok(Firewall::new(RuleSet::parse(&section.rules)?, section.rule_epoch))
}

fn nat(section: &NatConfig, slots: u32) -> Result<Nat44, ChainConfigError> {
    let sizes = (section.port_blocks_per_subscriber, section.port_hold_down_s);
    let pool = pool(NAT_POOL, &section.addresses, slots, sizes)?;
    if section.untranslated.len() > UNTRANSLATED_MAX {
        return Err(ChainConfigError::Untranslated(section.untranslated.len()));
    }
    let static_map = static_map(&section.static_mappings, &pool, IpVersion::V4)?;
    Ok(Nat44::new(pool).with_exceptions(static_map, section.untranslated.clone()))
}

fn nat64(section: &Nat64Config, slots: u32) -> Result<Nat64, ChainConfigError> {
    let sizes = (section.port_blocks_per_subscriber, section.port_hold_down_s);
    let pool = pool(NAT64_POOL, &section.addresses, slots, sizes)?;
    let static_map = static_map(&section.static_mappings, &pool, IpVersion::V6)?;
    let prefix = section.prefix;
    let behind = |mapping: &StaticMapping| prefix.holds(&Endpoint::new(mapping.inside, 0).address);
    if let Some(wrong) = static_map.mappings().find(behind) {
        return Err(ChainConfigError::Static {
            external: wrong.external.to_string(),
            why: format!("its inside end lies behind the prefix {prefix}"),
        });
    }
    Ok(Nat64::of(Ipv6Inside { prefix }, pool).with_exceptions(static_map, vec![]))
}

/// A NAT's pool; its sizes are port blocks of a subscriber, and the rest of returned ports.
fn pool(
    id: PoolId,
    ranges: &[AddressRange],
    slots: u32,
    (blocks, hold_down_s): (u16, u32),
) -> Result<PoolSpec, ChainConfigError> {
    if blocks == 0 {
        return Err(ChainConfigError::NoBlocks);
    }
    // One more than a pool may have is enough for it to say that there are too many.
    let most = nearstate_store::pool_spec::ADDRESSES_MAX + 1;
    let addresses = ranges.iter().flat_map(|range| range.addresses()).take(most).collect();
    let pool = PoolSpec::new(id, addresses, slots, blocks)?;
    Ok(pool.with_hold_down(u64::from(hold_down_s) * 1000)?)
}

fn static_map(
    mappings: &[StaticConfig],
    pool: &PoolSpec,
    family: IpVersion,
) -> Result<StaticMap, ChainConfigError> {
    let mappings = mappings.iter().map(|mapping| mapping.checked(pool, family));
    let mappings = mappings.collect::<Result<Vec<StaticMapping>, ChainConfigError>>()?;
    Ok(StaticMap::new(&mappings)?)
}

fn load_balancer(section: &LoadBalancerConfig) -> Result<LoadBalancer, ChainConfigError> {
    let endpoint = |address: core::net::SocketAddr| Endpoint::new(address.ip(), address.port());
    let services = section.service.iter().map(|service| Service {
        protocol: service.protocol.number(),
        address: endpoint(service.address),
        backends: service
            .backends
            .iter()
            .map(|backend| Share { endpoint: endpoint(backend.endpoint), weight: backend.weight })
            .collect(),
    });
    let balancing =
        Balancing { seed: section.seed, epoch: section.epoch, table_size: section.table_size };
    Ok(LoadBalancer::new(services.collect(), balancing)?)
}
