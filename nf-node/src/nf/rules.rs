//! Firewall rules: an ordered list, one line a rule, first match decides.
//!
//! ```text
//! allow|deny  in|out  any|tcp|udp|icmp  [from ADDRESSES] [port PORTS] [to ADDRESSES] [port PORTS]
//!
//! allow out tcp from 10.0.0.0/8 to any port 80-443
//! allow in icmp
//! deny in any
//! ```
//!
//! `port` belongs to the end that stands before it; without an end before it, to the destination.
//! ADDRESSES is `any`, an address, or a prefix as `10.0.0.0/8` or `2001:db8::/32`. `icmp` is echo
//! of both IP versions: errors are allowed by the flow that they are about and never by a rule.
//!
//! Rules decide on the first packet of a flow; later packets are decided by its state. Nothing here
//! knows of state. The list is walked from its head for each new flow, which [`RULES_MAX`] bounds.

#[cfg(test)]
mod tests;

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use nearstate_placement::{FlowTuple, Side};
use nearstate_store::{Address, Endpoint};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Rules that one firewall may have.
pub const RULES_MAX: usize = 1024;
/// Bytes that the text of one rule may have.
pub const RULE_TEXT_MAX: usize = 256;

/// What a rule says of the packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They may open a flow.
    Allow,
    /// They are dropped.
    Deny,
}

/// Which protocols a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleProtocol {
    /// All.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo of ICMP and ICMPv6.
    Icmp,
}

impl RuleProtocol {
    const fn matches(self, protocol: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Tcp => protocol == 6,
            Self::Udp => protocol == 17,
            Self::Icmp => protocol == 1 || protocol == 58,
        }
    }
}

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    /// Bits that count, of 32 or 128.
    length: u8,
    /// The same over the IPv4-mapped form: what is compared for each packet.
    bits: u128,
    mask: u128,
}

impl Prefix {
    /// The addresses whose first `length` bits are those of `address`.
    ///
    /// # Errors
    /// If the length is beyond the family's, or bits behind it are set.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        if length > width {
            return Err(PrefixError::Length { length, width });
        }
        let mapped = length + (128 - width);
        let mask = if mapped == 0 { 0 } else { u128::MAX << (128 - mapped) };
        let bits = Address::from(address).bits();
        if bits & !mask != 0 {
            return Err(PrefixError::HostBits { address, length });
        }
        Ok(Self { address, length, bits, mask })
    }

    /// Whether its addresses are those of IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Whether this is one of the addresses; an IPv4 address is given IPv4-mapped.
    #[must_use]
    #[inline]
    pub fn holds(&self, address: &Address) -> bool {
        address.bits() & self.mask == self.bits
    }
}

/// A prefix that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// Longer than an address.
    #[error("a prefix of this family has at most {width} bits, not {length}")]
    Length {
        /// What was asked for.
        length: u8,
        /// Bits of an address.
        width: u8,
    },
    /// More bits are set than count.
    #[error("{address} has bits set behind the first {length}; write the network's first address")]
    HostBits {
        /// What was given.
        address: IpAddr,
        /// Bits that count.
        length: u8,
    },
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            None => (text, None),
            Some((address, length)) => (address, Some(length)),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("'{address}' is not an IP address"))?;
        let length = match length {
            None if address.is_ipv4() => 32,
            None => 128,
            Some(text) => text.parse().map_err(|_| format!("'{text}' is not a prefix length"))?,
        };
        Self::new(address, length).map_err(|error| error.to_string())
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        if self.length == width {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.length)
        }
    }
}

/// One end of the packets that a rule matches. `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RuleEnd {
    /// Its addresses.
    pub prefix: Option<Prefix>,
    /// Its ports, first and last.
    pub ports: Option<(u16, u16)>,
}

impl RuleEnd {
    fn matches(&self, end: &Endpoint) -> bool {
        self.prefix.is_none_or(|prefix| prefix.holds(&end.address))
            && self.ports.is_none_or(|(first, last)| (first..=last).contains(&end.port))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, word: &str) -> fmt::Result {
        if self.prefix.is_none() && self.ports.is_none() {
            return Ok(());
        }
        match self.prefix {
            None => write!(f, " {word} any")?,
            Some(prefix) => write!(f, " {word} {prefix}")?,
        }
        match self.ports {
            None => Ok(()),
            Some((first, last)) if first == last => write!(f, " port {first}"),
            Some((first, last)) => write!(f, " port {first}-{last}"),
        }
    }
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it says.
    pub action: Action,
    /// Where its packets come from: `in` is from outside.
    pub side: Side,
    /// Their protocol.
    pub protocol: RuleProtocol,
    /// Their source.
    pub source: RuleEnd,
    /// Their destination.
    pub destination: RuleEnd,
}

impl Rule {
    /// Whether this rule is about a packet that came in on this side with this tuple.
    #[must_use]
    pub fn matches(&self, side: Side, tuple: &FlowTuple) -> bool {
        self.side == side
            && self.protocol.matches(tuple.protocol)
            && self.source.matches(&tuple.source)
            && self.destination.matches(&tuple.destination)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let direction = match self.side {
            Side::Inside => "out",
            Side::Outside => "in",
        };
        let protocol = match self.protocol {
            RuleProtocol::Any => "any",
            RuleProtocol::Tcp => "tcp",
            RuleProtocol::Udp => "udp",
            RuleProtocol::Icmp => "icmp",
        };
        write!(f, "{action} {direction} {protocol}")?;
        self.source.write(f, "from")?;
        self.destination.write(f, "to")
    }
}

/// A line that is no rule. Words are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// The line ends too early.
    #[error("the rule ends after word {after}; {expected} is missing")]
    Ends {
        /// Words there are.
        after: usize,
        /// What should follow.
        expected: &'static str,
    },
    /// A word that does not fit.
    #[error("word {at}, '{word}', is wrong: {why}")]
    Word {
        /// Which word.
        at: usize,
        /// What it says.
        word: String,
        /// What should stand there.
        why: String,
    },
    /// More text than a rule may have.
    #[error("the rule has {0} bytes, more than the limit of {RULE_TEXT_MAX}")]
    TooLong(usize),
}

/// The words of a line, and where we are in it.
struct Words<'a> {
    words: core::str::SplitWhitespace<'a>,
    at: usize,
}

impl<'a> Words<'a> {
    fn next(&mut self, expected: &'static str) -> Result<&'a str, RuleError> {
        let word = self.words.next().ok_or(RuleError::Ends { after: self.at, expected })?;
        self.at += 1;
        Ok(word)
    }

    fn next_if_any(&mut self) -> Option<&'a str> {
        let word = self.words.next();
        self.at += usize::from(word.is_some());
        word
    }

    fn wrong(&self, word: &str, why: impl Into<String>) -> RuleError {
        RuleError::Word { at: self.at, word: word.to_owned(), why: why.into() }
    }

    fn addresses(&mut self) -> Result<Option<Prefix>, RuleError> {
        match self.next("'any', an address or a prefix")? {
            "any" => Ok(None),
            word => word.parse().map(Some).map_err(|why: String| self.wrong(word, why)),
        }
    }

    fn ports(&mut self) -> Result<(u16, u16), RuleError> {
        let word = self.next("a port or a range of ports")?;
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
            _ => Err(self.wrong(word, "ports are 1 to 65535, a range is written 80-443")),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        if text.len() > RULE_TEXT_MAX {
            return Err(RuleError::TooLong(text.len()));
        }
        let mut words = Words { words: text.split_whitespace(), at: 0 };
        let action = match words.next("'allow' or 'deny'")? {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            word => return Err(words.wrong(word, "a rule begins with 'allow' or 'deny'")),
        };
        let side = match words.next("'in' or 'out'")? {
            "in" => Side::Outside,
            "out" => Side::Inside,
            word => return Err(words.wrong(word, "the direction is 'in' or 'out'")),
        };
        let protocol = match words.next("a protocol")? {
            "any" => RuleProtocol::Any,
            "tcp" => RuleProtocol::Tcp,
            "udp" => RuleProtocol::Udp,
            "icmp" => RuleProtocol::Icmp,
            word => {
                return Err(words.wrong(word, "the protocol is 'any', 'tcp', 'udp' or 'icmp'"));
            }
        };
        let (source, destination) = parse_ends(&mut words, protocol)?;
        Ok(Self { action, side, protocol, source, destination })
    }
}

fn parse_ends(
    words: &mut Words<'_>,
    protocol: RuleProtocol,
) -> Result<(RuleEnd, RuleEnd), RuleError> {
    let has_ports = matches!(protocol, RuleProtocol::Tcp | RuleProtocol::Udp);
    let (mut source, mut destination) = (RuleEnd::default(), RuleEnd::default());
    let (mut from_seen, mut to_seen) = (false, false);
    while let Some(word) = words.next_if_any() {
        match word {
            "from" if !from_seen && !to_seen => {
                from_seen = true;
                source.prefix = words.addresses()?;
            }
            "to" if !to_seen => {
                to_seen = true;
                destination.prefix = words.addresses()?;
            }
            "port" if !has_ports => {
                return Err(words.wrong(word, "only 'tcp' and 'udp' have ports"));
            }
            "port" => {
                let end = if from_seen && !to_seen { &mut source } else { &mut destination };
                if end.ports.is_some() {
                    return Err(words.wrong(word, "this end has its ports already"));
                }
                end.ports = Some(words.ports()?);
            }
            "from" | "to" => {
                return Err(words.wrong(word, "'from' and 'to' stand once, 'from' before 'to'"));
            }
            _ => return Err(words.wrong(word, "expected 'from', 'to' or 'port'")),
        }
    }
    Ok((source, destination))
}

/// A list of rules that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleSetError {
    /// One of them is no rule.
    #[error("firewall rule {number} ('{text}'): {error}")]
    Rule {
        /// Which, from 1.
        number: usize,
        /// What it says.
        text: String,
        /// What is wrong with it.
        error: RuleError,
    },
    /// Too many.
    #[error("a firewall has at most {RULES_MAX} rules, this one has {0}")]
    TooMany(usize),
}

/// Rules in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RuleSet {
    rules: Vec<Rule>,
}

impl RuleSet {
    /// The rules that these lines spell.
    ///
    /// # Errors
    /// Names the first line that is wrong, and the word in it.
    pub fn parse<T: AsRef<str>>(lines: &[T]) -> Result<Self, RuleSetError> {
        if lines.len() > RULES_MAX {
            return Err(RuleSetError::TooMany(lines.len()));
        }
        let rules = lines.iter().enumerate().map(|(at, line)| {
            let text = line.as_ref();
            text.parse().map_err(|error| RuleSetError::Rule {
                number: at + 1,
                text: text.chars().take(RULE_TEXT_MAX).collect(),
                error,
            })
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What the first rule that is about this packet says; `None` if none is.
    #[must_use]
    pub fn decide(&self, side: Side, tuple: &FlowTuple) -> Option<Action> {
        self.rules.iter().find(|rule| rule.matches(side, tuple)).map(|rule| rule.action)
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}
