//! What a chain is made of, as it stands in a node's configuration.
//!
//! ```toml
//! functions = ["firewall", "nat"]     # in the order that packets from inside pass
//! inside = ["10.0.0.0/8"]             # sources that packets from inside have, and only they
//!
//! [nat]
//! addresses = ["198.19.0.0/24", "203.0.113.7"]
//! port_blocks_per_subscriber = 256
//! port_hold_down_s = 120              # a returned port rests; 120 to 3600
//! filtering = "endpoint-independent"  # or "address-dependent", "address-and-port-dependent"
//! untranslated = ["10.0.0.0/8"]       # destinations that are reached as it is
//! [[nat.static]]                      # an end that is always the same, see `static_config`
//! external = "198.19.0.1:443"
//! inside = "10.0.0.5:8443"
//! protocol = "tcp"
//!
//! [nat64]                             # for functions = ["nat64"]: hosts of IPv6 inside
//! prefix = "64:ff9b::/96"             # behind which they see IPv4
//! addresses = ["198.19.1.0/24"]       # and all other keys of [nat] but untranslated
//!
//! [timeouts]                          # seconds since the last packet, and their least values
//! udp_s = 300                         # 120
//! tcp_established_s = 7440            # 7440
//! tcp_transitory_s = 240              # 240
//! icmp_s = 60                         # 60
//! seen_within_ms = 1000               # 1000; what was seen is replicated so soon
//!
//! [firewall]
//! rules = ["allow in tcp to 10.0.0.5 port 443"]
//!
//! [load_balancer]                     # for functions = ["firewall", "load-balancer"]
//! [[load_balancer.service]]
//! protocol = "tcp"
//! address = "203.0.113.80:443"
//! backends = [{ endpoint = "10.0.1.1:8443" }, { endpoint = "10.0.1.2:8443", weight = 2 }]
//! ```
//!
//! Unknown keys are errors. Nothing here builds a function: [`crate::chain::Chain::new`] does, and
//! checks what one key alone cannot show.

use crate::maglev::TABLE_SIZE;
use crate::nat64_prefix::Nat64Prefix;
use crate::nf::load_balancer::LoadBalancerError;
use crate::nf::nat_filter::Filtering;
use crate::nf::nat44::UNTRANSLATED_MAX;
use crate::nf::rules::{Prefix, RuleSetError};
use crate::nf::timeouts::Timeouts;
use crate::source_check::INSIDE_PREFIXES_MAX;
use crate::static_config::StaticConfig;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::str::FromStr;
use nearstate_placement::static_map::StaticMapError;
use nearstate_store::limits::PORT_HOLD_DOWN_MS;
use nearstate_store::pool_spec::{ADDRESSES_MAX, PoolSpecError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A function of a chain, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FunctionName {
    /// The stateful firewall.
    Firewall,
    /// NAT44.
    Nat,
    /// NAT64.
    Nat64,
    /// The load balancer.
    LoadBalancer,
}

impl FunctionName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Firewall, Self::Nat, Self::Nat64, Self::LoadBalancer];

    /// The name in configurations and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Firewall => "firewall",
            Self::Nat => "nat",
            Self::Nat64 => "nat64",
            Self::LoadBalancer => "load-balancer",
        }
    }

    /// The section that configures it.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::Firewall => "[chain.firewall]",
            Self::Nat => "[chain.nat]",
            Self::Nat64 => "[chain.nat64]",
            Self::LoadBalancer => "[chain.load_balancer]",
        }
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FunctionName {
    type Err = ChainConfigError;

    fn from_str(text: &str) -> Result<Self, ChainConfigError> {
        let found = Self::ALL.into_iter().find(|function| function.name() == text);
        found.ok_or_else(|| ChainConfigError::UnknownFunction(text.to_owned()))
    }
}

/// A chain's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainConfig {
    /// Whose packets pass it.
    #[serde(default)]
    pub tenant: u16,
    /// The functions, in the order that packets from inside pass; from outside it is the reverse.
    pub functions: Vec<FunctionName>,
    /// Where inside hosts are; who is not there is not let out, and who is does not come from
    /// outside (RFC 2827). None: nobody is refused for that.
    #[serde(default)]
    pub inside: Vec<Prefix>,
    /// The NAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat: Option<NatConfig>,
    /// The NAT64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nat64: Option<Nat64Config>,
    /// The firewall. Without it a firewall has no rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firewall: Option<FirewallConfig>,
    /// The load balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerConfig>,
    /// How long state lives that nobody uses.
    #[serde(default)]
    pub timeouts: Timeouts,
}

/// The NAT's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatConfig {
    /// The external addresses.
    pub addresses: Vec<AddressRange>,
    /// Most blocks of 64 ports that one inside address may have (RFC 6888 REQ-4).
    #[serde(default = "port_blocks_per_subscriber")]
    pub port_blocks_per_subscriber: u16,
    /// Seconds that a returned port rests before somebody else may have it, 120 to 3600 (RFC 6888
    /// REQ-8).
    #[serde(default = "port_hold_down_s")]
    pub port_hold_down_s: u32,
    /// Who may send to a mapping (RFC 4787 REQ-8).
    #[serde(default)]
    pub filtering: Filtering,
    /// Destinations that inside hosts reach untranslated (RFC 6888 REQ-6).
    #[serde(default)]
    pub untranslated: Vec<Prefix>,
    /// External ends that always belong to an inside one.
    #[serde(default, rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub static_mappings: Vec<StaticConfig>,
}

/// The NAT64's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nat64Config {
    /// Behind which inside hosts see IPv4 addresses (RFC 6052). It is to be routed here.
    #[serde(default)]
    pub prefix: Nat64Prefix,
    /// The external addresses.
    pub addresses: Vec<AddressRange>,
    /// Most blocks of 64 ports that one inside address may have.
    #[serde(default = "port_blocks_per_subscriber")]
    pub port_blocks_per_subscriber: u16,
    /// Seconds that a returned port rests before somebody else may have it.
    #[serde(default = "port_hold_down_s")]
    pub port_hold_down_s: u32,
    /// Who may send to a mapping.
    #[serde(default)]
    pub filtering: Filtering,
    /// External ends that always belong to an inside one.
    #[serde(default, rename = "static", skip_serializing_if = "Vec::is_empty")]
    pub static_mappings: Vec<StaticConfig>,
}

const fn port_hold_down_s() -> u32 {
    (PORT_HOLD_DOWN_MS / 1000) as u32
}

const fn port_blocks_per_subscriber() -> u16 {
    64
}

/// The firewall's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirewallConfig {
    /// The rules, first match first; see [`crate::nf::rules`].
    #[serde(default)]
    pub rules: Vec<String>,
    /// Rises with every change of the rules.
    #[serde(default)]
    pub rule_epoch: u64,
}

/// The load balancer's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancerConfig {
    /// Keys the hash of flows. Choose it at random and keep it from clients.
    #[serde(default)]
    pub seed: u64,
    /// Rises with every change of the services.
    #[serde(default)]
    pub epoch: u64,
    /// Places of a service's table, a prime.
    #[serde(default = "table_size")]
    pub table_size: u32,
    /// The services.
    pub service: Vec<ServiceConfig>,
}

const fn table_size() -> u32 {
    TABLE_SIZE
}

/// A service of the load balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// What runs over it.
    pub protocol: ServiceProtocol,
    /// The virtual endpoint, as `203.0.113.80:443`.
    pub address: SocketAddr,
    /// Who serves it.
    pub backends: Vec<BackendConfig>,
}

/// The protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl ServiceProtocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Where it listens.
    pub endpoint: SocketAddr,
    /// Its share in relation to the others'; 0 drains it.
    #[serde(default = "weight")]
    pub weight: u16,
}

const fn weight() -> u16 {
    1
}

/// One IPv4 address or a prefix of them, written `198.19.0.7` or `198.19.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AddressRange {
    first: Ipv4Addr,
    length: u8,
}

impl AddressRange {
    /// Its addresses, in order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        let first = u32::from(self.first);
        let count = 1u32 << (32 - self.length);
        (0..count).map(move |at| Ipv4Addr::from(first + at))
    }
}

impl FromStr for AddressRange {
    type Err = ChainConfigError;

    fn from_str(text: &str) -> Result<Self, ChainConfigError> {
        let wrong = |why: String| ChainConfigError::Address { text: text.to_owned(), why };
        let (address, length) = text.split_once('/').unwrap_or((text, "32"));
        let first: Ipv4Addr =
            address.parse().map_err(|_| wrong("it is not an IPv4 address".to_owned()))?;
        let length: u8 =
            length.parse().map_err(|_| wrong(format!("'{length}' is no prefix length")))?;
        let shortest = 32 - ADDRESSES_MAX.ilog2() as u8;
        if !(shortest..=32).contains(&length) {
            return Err(wrong(format!("prefixes of a pool have {shortest} to 32 bits")));
        }
        if u32::from(first) & ((1u32 << (32 - length)) - 1) != 0 {
            return Err(wrong(format!("bits are set behind the first {length}")));
        }
        Ok(Self { first, length })
    }
}

impl TryFrom<String> for AddressRange {
    type Error = ChainConfigError;

    fn try_from(text: String) -> Result<Self, ChainConfigError> {
        text.parse()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length {
            32 => write!(f, "{}", self.first),
            length => write!(f, "{}/{length}", self.first),
        }
    }
}

impl From<AddressRange> for String {
    fn from(range: AddressRange) -> Self {
        range.to_string()
    }
}

/// A configuration of which no chain can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainConfigError {
    /// No such function.
    #[error("there is no function '{0}'; known are firewall, nat, nat64, load-balancer")]
    UnknownFunction(String),
    /// Nothing to do.
    #[error("a chain needs at least one function: firewall, nat, nat64 or load-balancer")]
    Empty,
    /// A function stands twice.
    #[error("{0} stands twice in the chain; list it once")]
    Twice(FunctionName),
    /// A function that needs a section has none.
    #[error(
        "the chain lists {0}, so the configuration needs a section {section}",
        section = .0.section()
    )]
    NoSection(FunctionName),
    /// A section that nothing uses.
    #[error(
        "there is a section {section}, but functions does not list {0}",
        section = .0.section()
    )]
    UnusedSection(FunctionName),
    /// Their state cannot be in one slot.
    #[error(
        "{0} and load-balancer cannot be in one chain: a NAT's state goes by the inside host, a \
         balancer's by the client outside; give each a chain of its own"
    )]
    NatWithBalancer(FunctionName),
    /// The firewall would decide only after a mapping was made.
    #[error(
        "{0} stands before firewall, so what the firewall denies would get a port first; write \
         functions = [\"firewall\", \"{0}\"]"
    )]
    NatBeforeFirewall(FunctionName),
    /// Two pools would give out the same ports.
    #[error("address {0} is in the pools of both nat and nat64; give it to one of them")]
    PoolsOverlap(Ipv4Addr),
    /// Not a number of slots.
    #[error("a cluster has a power of two of slots up to 65536, not {0}")]
    Slots(u32),
    /// An address of the pool is wrong.
    #[error("NAT address '{text}': {why}")]
    Address {
        /// What it says.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The pool cannot be.
    #[error("the NAT's pool: {0}")]
    Pool(#[from] PoolSpecError),
    /// Nobody could have a port.
    #[error("port_blocks_per_subscriber is 0, so no host could have a port; give at least 1")]
    NoBlocks,
    /// A static mapping is wrong.
    #[error("the NAT's static mapping of {external}: {why}")]
    Static {
        /// Its external end.
        external: String,
        /// What is wrong with it.
        why: String,
    },
    /// Static mappings that cannot be together.
    #[error(transparent)]
    StaticMap(#[from] StaticMapError),
    /// Too many destinations.
    #[error("untranslated has {0} prefixes; at most {UNTRANSLATED_MAX} are looked through")]
    Untranslated(usize),
    /// Too many prefixes.
    #[error("inside has {0} prefixes; at most {INSIDE_PREFIXES_MAX} are looked through")]
    Inside(usize),
    /// What is inside cannot be outside as well.
    #[error(
        "the external address {external} lies in {inside}, which is said to be inside; an address \
         is on one side only"
    )]
    OwnInside {
        /// The address.
        external: IpAddr,
        /// The prefix.
        inside: Prefix,
    },
    /// State would end too soon, or hardly ever.
    #[error("[timeouts] {key} is {found}; it must be {least} to {most}")]
    Timeout {
        /// Which setting.
        key: &'static str,
        /// What it says.
        found: u32,
        /// The least that it may say.
        least: u32,
        /// The most.
        most: u32,
    },
    /// A rule is wrong.
    #[error(transparent)]
    Rules(#[from] RuleSetError),
    /// The services cannot be.
    #[error("the load balancer: {0}")]
    LoadBalancer(#[from] LoadBalancerError),
}

impl ChainConfig {
    /// The chain of these functions with the settings of the demo: a NAT on 198.19.0.0/24 whose
    /// hosts may have 256 port blocks, a NAT64 on 198.19.1.0/24 with as many and the prefix
    /// 2001:db8:64::/96 (the well-known one cannot stand for the demo's addresses), a firewall
    /// without rules, a service on 203.0.113.80:80 with four backends (which a firewall in the same
    /// chain lets clients reach).
    ///
    /// # Errors
    /// If a name is no function's.
    pub fn named<T: AsRef<str>>(functions: &[T]) -> Result<Self, ChainConfigError> {
        let functions =
            functions.iter().map(|name| name.as_ref().parse()).collect::<Result<Vec<_>, _>>()?;
        let nat = NatConfig {
            addresses: vec![AddressRange { first: Ipv4Addr::new(198, 19, 0, 0), length: 24 }],
            port_blocks_per_subscriber: 256,
            port_hold_down_s: port_hold_down_s(),
            filtering: Filtering::default(),
            untranslated: vec![],
            static_mappings: vec![],
        };
        let nat64 = Nat64Config {
            prefix: demo_prefix(),
            addresses: vec![AddressRange { first: Ipv4Addr::new(198, 19, 1, 0), length: 24 }],
            port_blocks_per_subscriber: 256,
            port_hold_down_s: port_hold_down_s(),
            filtering: Filtering::default(),
            static_mappings: vec![],
        };
        let has = |function| functions.contains(&function);
        let mut firewall = FirewallConfig::default();
        if has(FunctionName::LoadBalancer) {
            // Whichever of the two comes first, the firewall sees one of these.
            let rules = ["allow in tcp to 203.0.113.80 port 80", "allow in tcp to 10.0.1.0/24"];
            firewall.rules = rules.map(str::to_owned).to_vec();
        }
        Ok(Self {
            tenant: 0,
            inside: vec![],
            nat: has(FunctionName::Nat).then_some(nat),
            nat64: has(FunctionName::Nat64).then_some(nat64),
            firewall: has(FunctionName::Firewall).then_some(firewall),
            load_balancer: has(FunctionName::LoadBalancer).then(demo_balancer),
            timeouts: Timeouts::default(),
            functions,
        })
    }
}

fn demo_prefix() -> Nat64Prefix {
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 0);
    Nat64Prefix::new(address, 96).unwrap_or_default()
}

fn demo_balancer() -> LoadBalancerConfig {
    let backend =
        |last| BackendConfig { endpoint: SocketAddr::from(([10, 0, 1, last], 8080)), weight: 1 };
    let service = ServiceConfig {
        protocol: ServiceProtocol::Tcp,
        address: SocketAddr::from(([203, 0, 113, 80], 80)),
        backends: (1..=4).map(backend).collect(),
    };
    LoadBalancerConfig { seed: 0, epoch: 0, table_size: TABLE_SIZE, service: vec![service] }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        tenant = 3
        functions = ["firewall", "nat"]
        [nat]
        addresses = ["198.19.0.0/30", "203.0.113.7"]
        port_hold_down_s = 600
        filtering = "address-dependent"
        untranslated = ["10.0.0.0/8", "192.0.2.7"]
        [[nat.static]]
        external = "203.0.113.9"
        inside = "10.0.0.9"
        [[nat.static]]
        external = "198.19.0.1:443"
        inside = "10.0.0.5:8443"
        protocol = "tcp"
        [nat64]
        prefix = "2001:db8:64::/48"
        addresses = ["198.19.1.0/30"]
        [[nat64.static]]
        external = "203.0.113.10"
        inside = "2001:db8::5"
        [timeouts]
        udp_s = 180
        [firewall]
        rules = ["allow in icmp"]
        [[load_balancer.service]]
        protocol = "udp"
        address = "[2001:db8::1]:53"
        [[load_balancer.service.backends]]
        endpoint = "[2001:db8::2]:53"
        [[load_balancer.service.backends]]
        endpoint = "[2001:db8::3]:53"
        weight = 0
    "#;

    #[test]
    fn a_configuration_is_read_and_written_back() {
        let config: ChainConfig = toml::from_str(WHOLE).unwrap();
        assert_eq!(config.tenant, 3);
        assert_eq!(config.functions, [FunctionName::Firewall, FunctionName::Nat]);
        let nat = config.nat.as_ref().unwrap();
        assert_eq!((nat.port_blocks_per_subscriber, nat.port_hold_down_s), (64, 600));
        assert_eq!(nat.filtering, Filtering::AddressDependent);
        assert_eq!(nat.untranslated[1].to_string(), "192.0.2.7");
        assert_eq!(nat.static_mappings.len(), 2);
        let nat64 = config.nat64.as_ref().unwrap();
        assert_eq!(nat64.prefix.to_string(), "2001:db8:64::/48");
        assert_eq!((nat64.port_blocks_per_subscriber, nat64.static_mappings.len()), (64, 1));
        assert_eq!(config.timeouts, Timeouts { udp_s: 180, ..Timeouts::default() });
        let addresses: Vec<_> = nat.addresses.iter().flat_map(|range| range.addresses()).collect();
        let expected: Vec<Ipv4Addr> =
            ["198.19.0.0", "198.19.0.1", "198.19.0.2", "198.19.0.3", "203.0.113.7"]
                .map(|text| text.parse().unwrap())
                .to_vec();
        assert_eq!(addresses, expected);
        let balancer = config.load_balancer.as_ref().unwrap();
        assert_eq!(balancer.table_size, TABLE_SIZE);
        assert_eq!(balancer.service[0].backends.iter().map(|b| b.weight).sum::<u16>(), 1);
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<ChainConfig>(&text).unwrap(), config);
    }

    #[test]
    fn a_wrong_configuration_says_what_is_wrong() {
        let rows = [
            ("functions = ['nat']\nadresses = 1", "unknown field `adresses`"),
            ("functions = ['ids']", "unknown variant `ids`"),
            ("", "missing field `functions`"),
            ("functions = []\n[nat]\naddresses = ['10.0.0.1/8']", "prefixes of a pool have 20 to"),
            ("functions = []\n[nat]\naddresses = ['10.0.0.1/24']", "bits are set behind the first"),
            ("functions = []\n[nat]\naddresses = ['10.0.0/24']", "it is not an IPv4 address"),
            ("functions = []\n[nat]\naddresses = ['10.0.0.0/x']", "'x' is no prefix length"),
            ("functions = []\n[nat]\naddresses = []\nports = 4", "unknown field `ports`"),
            ("functions = []\n[nat]\naddresses = []\nfiltering = 'none'", "unknown variant `none`"),
            (
                "functions = []\n[nat64]\naddresses = []\nuntranslated = []",
                "unknown field `untrans",
            ),
            ("functions = []\n[nat64]\naddresses = []\nprefix = '::/8'", "must be 32, 40, 48, 56"),
            ("functions = []\n[firewall]\nrule = []", "unknown field `rule`"),
            ("functions = []\n[timeouts]\ntcp = 9", "unknown field `tcp`"),
            ("functions = []\n[load_balancer]\nservices = []", "unknown field `services`"),
        ];
        for (text, message) in rows {
            let error = toml::from_str::<ChainConfig>(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn named_chains_have_what_their_functions_need() {
        let config = ChainConfig::named(&["firewall", "nat"]).unwrap();
        assert!(config.nat.is_some() && config.firewall.is_some());
        assert!(config.load_balancer.is_none());
        assert_eq!(config.nat.unwrap().addresses[0].to_string(), "198.19.0.0/24");
        let config = ChainConfig::named(&["nat64"]).unwrap();
        assert_eq!(config.nat64.unwrap().prefix.to_string(), "2001:db8:64::/96");
        assert_eq!(
            ChainConfig::named(&["firewal"]).unwrap_err().to_string(),
            "there is no function 'firewal'; known are firewall, nat, nat64, load-balancer"
        );
    }
}
