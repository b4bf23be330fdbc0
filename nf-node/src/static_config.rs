//! A static mapping of a NAT as it stands in the configuration, and what may stand there.
//!
//! ```toml
//! [[nat.static]]                  # a port of an external address
//! external = "198.19.0.1:443"
//! inside = "10.0.0.5:8443"
//! protocol = "tcp"
//! [[nat.static]]                  # a whole address, whatever runs over it
//! external = "203.0.113.9"
//! inside = "10.0.0.9"
//! [[nat64.static]]                # of a NAT64 the inside end is one of IPv6
//! external = "198.19.1.1:443"
//! inside = "[2001:db8::5]:8443"
//! protocol = "tcp"
//! ```
//!
//! An external end is never one that the pool gives out: it lies on an address that is not the
//! pool's, or on a port below [`FIRST_PORT`]. So no port can have two holders (RFC 4787 REQ-3).

use crate::chain_config::{ChainConfigError, ServiceProtocol};
use crate::packet::parsed::IpVersion;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::str::FromStr;
use nearstate_placement::StaticMapping;
use nearstate_store::PoolSpec;
use nearstate_store::pool_spec::FIRST_PORT;
use serde::{Deserialize, Serialize};

/// An address, or one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StaticEnd {
    /// The address.
    pub address: IpAddr,
    /// The port; `None`: all of the address.
    pub port: Option<u16>,
}

impl FromStr for StaticEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(end) = text.parse::<SocketAddr>() {
            return match end.port() {
                0 => Err(format!("'{text}': there is no port 0")),
                port => Ok(Self { address: end.ip(), port: Some(port) }),
            };
        }
        let address = text.parse().map_err(|_| {
            format!("'{text}' is neither an address nor one with a port, as 10.0.0.5:443")
        })?;
        Ok(Self { address, port: None })
    }
}

impl TryFrom<String> for StaticEnd {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for StaticEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => write!(f, "{}", self.address),
        }
    }
}

impl From<StaticEnd> for String {
    fn from(end: StaticEnd) -> Self {
        end.to_string()
    }
}

/// A static mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticConfig {
    /// What the world sees.
    pub external: StaticEnd,
    /// Who has it.
    pub inside: StaticEnd,
    /// The protocol of the ports; none for a whole address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ServiceProtocol>,
}

impl StaticConfig {
    /// The mapping beside a pool, of a NAT whose inside hosts are of that family.
    ///
    /// # Errors
    /// Says why it cannot be.
    pub fn checked(
        &self,
        pool: &PoolSpec,
        family: IpVersion,
    ) -> Result<StaticMapping, ChainConfigError> {
        let Self { external, inside, protocol } = *self;
        let wrong = |why: &str| {
            Err(ChainConfigError::Static { external: external.to_string(), why: why.to_owned() })
        };
        let port = match (external.port, inside.port, protocol) {
            (None, None, None) => None,
            (Some(outer), Some(inner), Some(protocol)) => Some((protocol.number(), outer, inner)),
            (Some(_), Some(_), None) => return wrong("ports need a protocol, \"tcp\" or \"udp\""),
            (None, None, Some(_)) => {
                return wrong("a whole address has no protocol; leave it out, or give both ports");
            }
            _ => return wrong("give a port to both ends or to none"),
        };
        let IpAddr::V4(address) = external.address else {
            return wrong("its external end is not one of IPv4");
        };
        match (family, inside.address) {
            (IpVersion::V4, IpAddr::V4(inside)) if pool.holds(inside) => {
                return wrong("its inside end is an address of the pool");
            }
            (IpVersion::V4, IpAddr::V4(_)) | (IpVersion::V6, IpAddr::V6(_)) => {}
            (IpVersion::V4, IpAddr::V6(_)) => {
                return wrong("its inside end is one of IPv6; such ends belong to [chain.nat64]");
            }
            (IpVersion::V6, IpAddr::V4(_)) => {
                return wrong("its inside end is one of IPv4; such ends belong to [chain.nat]");
            }
        }
        let is_in_pool = pool.holds(address);
        if is_in_pool && external.port.is_none_or(|port| port >= FIRST_PORT) {
            return wrong(
                "the pool gives out the ports of this address from 1024 on; use a lower \
                          port, or an address that is not in the pool",
            );
        }
        Ok(StaticMapping { external: address, inside: inside.address, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_store::PoolId;

    fn config(external: &str, inside: &str, protocol: Option<ServiceProtocol>) -> StaticConfig {
        let end = |text: &str| text.parse().unwrap();
        StaticConfig { external: end(external), inside: end(inside), protocol }
    }

    #[test]
    fn a_static_mapping_never_is_where_the_pool_gives_ports_out() {
        let tcp = Some(ServiceProtocol::Tcp);
        let pool = PoolSpec::new(PoolId(0), vec![[198, 19, 0, 1].into()], 16, 4).unwrap();
        let rows = [
            (config("198.19.0.1:443", "10.0.0.5:8443", tcp), Ok(Some((6, 443, 8443)))),
            (config("203.0.113.9:8443", "10.0.0.5:8443", tcp), Ok(Some((6, 8443, 8443)))),
            (config("203.0.113.9", "10.0.0.9", None), Ok(None)),
            (config("198.19.0.1:1024", "10.0.0.5:8443", tcp), Err("from 1024 on")),
            (config("198.19.0.1", "10.0.0.5", None), Err("from 1024 on")),
            (config("203.0.113.9:1", "10.0.0.5:1", None), Err("ports need a protocol")),
            (config("203.0.113.9", "10.0.0.5", tcp), Err("leave it out")),
            (config("203.0.113.9:1", "10.0.0.5", tcp), Err("both ends or to none")),
            (config("203.0.113.9", "198.19.0.1", None), Err("its inside end is an address")),
            (config("203.0.113.9", "2001:db8::5", None), Err("belong to [chain.nat64]")),
            (config("2001:db8::5", "10.0.0.5", None), Err("not one of IPv4")),
        ];
        for (config, expected) in rows {
            match (config.checked(&pool, IpVersion::V4), expected) {
                (Ok(mapping), Ok(port)) => assert_eq!(mapping.port, port, "{config:?}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "{config:?}: {error}");
                }
                (found, _) => panic!("{config:?}: {found:?}"),
            }
        }
        let six = config("198.19.0.1:443", "[2001:db8::5]:8443", tcp);
        assert_eq!(six.checked(&pool, IpVersion::V6).unwrap().port, Some((6, 443, 8443)));
        let four = config("203.0.113.9", "10.0.0.5", None).checked(&pool, IpVersion::V6);
        assert!(four.unwrap_err().to_string().contains("belong to [chain.nat]"));
    }

    #[test]
    fn ends_are_read_and_written_back() {
        for text in ["10.0.0.5", "10.0.0.5:443", "2001:db8::5", "[2001:db8::5]:443"] {
            assert_eq!(text.parse::<StaticEnd>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0", "10.0.0.5:0", "10.0.0.5:65536", "[::1]:0", "host:1"] {
            assert!(text.parse::<StaticEnd>().is_err(), "{text}");
        }
    }
}
