//! A chain on the command line: `firewall,nat`.
//!
//! It is built once while the command line is read, so that one which cannot be is an error of the
//! command line like any other.

use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::chain_config::{ChainConfig, ChainConfigError};
use std::str::FromStr;

/// Slots of a chain that is built here.
pub(super) const SLOTS: u32 = 1024;

/// What is said of every option of this kind.
pub(super) const CHAIN_HELP: &str = "Network functions that packets from inside pass, in order, \
    with commas between: firewall, nat, nat64, load-balancer";

/// A chain with the settings of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChainList(pub(super) ChainConfig);

impl FromStr for ChainList {
    type Err = ChainConfigError;

    fn from_str(text: &str) -> Result<Self, ChainConfigError> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        let config = ChainConfig::named(&names)?;
        Chain::new(&config, SLOTS)?;
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::chain_config::FunctionName;

    #[test]
    fn blanks_do_not_matter_and_what_cannot_be_is_refused() {
        let chain: ChainList = " firewall , nat ".parse().unwrap();
        assert_eq!(chain.0.functions, [FunctionName::Firewall, FunctionName::Nat]);
        for (text, said) in [
            ("firewall,nta", "'nta'"),
            ("", "''"),
            ("nat,firewall", "nat stands before firewall"),
            ("nat,nat", "nat stands twice"),
            ("nat,load-balancer", "cannot be in one chain"),
        ] {
            let error = text.parse::<ChainList>().unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }
}
