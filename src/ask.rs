//! Questions to a running node: one connection, one control message, one answer.

use clap::Args;
use nearstate_nf_node::node_config::cluster_id;
use nearstate_placement::api::{Request, Response};
use nearstate_store::client::{Client, ConnectError};
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;

/// What clusters are called unless told otherwise.
pub(crate) const CLUSTER_NAME: &str = "nearstate";
/// How long a node may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Which cluster is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterName {
    /// The cluster's name, the key `cluster` of its nodes' configurations
    #[arg(long, value_name = "NAME", default_value = CLUSTER_NAME)]
    cluster: String,
}

/// Where a node listens, as it is said on the command line: `IP:PORT` or `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeAddress(String);

/// What [`NodeAddress`] may be, for help texts.
pub(crate) const NODE_ADDRESS: &str = "IP:PORT|HOST:PORT";

impl FromStr for NodeAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || "give IP:PORT or HOST:PORT, such as 127.0.0.1:7001 or localhost:7001";
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_v6 = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(':') && !is_v6 || host.contains(char::is_whitespace) {
            return Err(wrong().to_owned());
        }
        match port.parse::<u16>() {
            Ok(1..) => Ok(Self(text.to_owned())),
            _ => Err(format!("{port:?} is no port: it must be a number from 1 to 65535")),
        }
    }
}

impl NodeAddress {
    /// The addresses that the name stands for.
    fn resolve(&self) -> Result<Vec<SocketAddr>, AskError> {
        let unknown = |why: String| AskError::Unknown { name: self.0.clone(), why };
        let found: Vec<_> =
            self.0.to_socket_addrs().map_err(|error| unknown(error.to_string()))?.collect();
        if found.is_empty() { Err(unknown("no address".to_owned())) } else { Ok(found) }
    }
}

/// A question without an answer.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// A name that stands for nothing.
    #[error("{name} cannot be looked up ({why}); give the address of a node as IP:PORT")]
    Unknown {
        /// The name.
        name: String,
        /// What the system says.
        why: String,
    },
    /// It belongs to another cluster than was said.
    #[error(
        "the node at {address} belongs to another cluster than \"{cluster}\"; give its cluster's \
         name with --cluster (the key `cluster` of its configuration)"
    )]
    OtherCluster {
        /// Where.
        address: SocketAddr,
        /// What was said.
        cluster: String,
    },
    /// Not a node of ours.
    #[error("{0}")]
    Stranger(String),
    /// Nobody listens there.
    #[error(
        "no node answers at {address}: {why}; see whether it runs, and what address its ready line \
         and the key `listen` of its configuration say"
    )]
    Silent {
        /// Where.
        address: SocketAddr,
        /// What happened.
        why: String,
    },
    /// It will not.
    #[error("the node at {address} refuses: {reason}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why, in its words.
        reason: String,
    },
    /// Not the answer to this question.
    #[error("the node at {address} answered something else; is it of the same version?")]
    Unexpected {
        /// Where.
        address: SocketAddr,
    },
    /// Our own side.
    #[error("no connections can be made here: {0}")]
    Runtime(#[from] std::io::Error),
}

impl AskError {
    /// What an answer of another kind means.
    pub(crate) fn unexpected(address: SocketAddr, response: &Response) -> Self {
        match response {
            Response::Refused { reason, .. } => Self::Refused { address, reason: reason.clone() },
            _ => Self::Unexpected { address },
        }
    }
}

/// Asks and waits for the answer. Gives also which address answered.
pub(crate) fn ask(
    cluster: &ClusterName,
    node: &NodeAddress,
    request: &Request,
) -> Result<(SocketAddr, Response), AskError> {
    let mut last = None;
    for address in node.resolve()? {
        match ask_at(cluster, address, request) {
            // A name may have addresses that nobody listens on, such as IPv6's beside IPv4's.
            Err(error @ AskError::Silent { .. }) => last = Some(error),
            answered => return Ok((address, answered?)),
        }
    }
    Err(last.expect("a name stands for one address at least"))
}

/// Asks at one address.
pub(crate) fn ask_at(
    cluster: &ClusterName,
    address: SocketAddr,
    request: &Request,
) -> Result<Response, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask_soon(&cluster.cluster, address, request, PATIENCE))
}

/// Asks, inside a runtime.
pub(crate) async fn ask_soon(
    cluster: &str,
    address: SocketAddr,
    request: &Request,
    patience: Duration,
) -> Result<Response, AskError> {
    let silent = |why: String| AskError::Silent { address, why };
    let connected = Client::connect(cluster_id(cluster), address, patience).await;
    let client = connected.map_err(|error| match error {
        ConnectError::OtherCluster(address) => {
            AskError::OtherCluster { address, cluster: cluster.to_owned() }
        }
        ConnectError::Io { source, .. } => silent(source.to_string()),
        ConnectError::Timeout(_) => silent("it cannot be reached in time".to_owned()),
        other => AskError::Stranger(other.to_string()),
    })?;
    let answer =
        client.call(request.encode(), patience).await.map_err(|error| silent(error.to_string()))?;
    Response::decode(&answer).map_err(|error| silent(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_host_names_with_a_port_are_taken() {
        for good in ["127.0.0.1:7001", "localhost:7001", "[::1]:7001", " n1.example:65535 "] {
            assert!(good.parse::<NodeAddress>().is_ok(), "{good}");
        }
        for wrong in ["", "localhost", "7001", ":7001", "a:b:1", "::1:7001", "h:0", "h:65536"] {
            assert!(wrong.parse::<NodeAddress>().is_err(), "{wrong}");
        }
        let local: NodeAddress = "localhost:7001".parse().unwrap();
        let found = local.resolve().unwrap();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
