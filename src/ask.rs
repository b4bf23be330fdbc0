//! Questions to a running node: one connection, one control message, one answer.

use clap::Args;
use nearstate_nf_node::node_config::cluster_id;
use nearstate_placement::api::{Request, Response};
use nearstate_store::client::Client;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;

/// What clusters are called unless told otherwise.
pub(crate) const CLUSTER_NAME: &str = "nearstate";
/// How long a node may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Which cluster is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterName {
    /// The cluster's name, as in its nodes' configurations
    #[arg(long, value_name = "NAME", default_value = CLUSTER_NAME)]
    cluster: String,
}

/// A question without an answer.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// Not reached, or gone before it answered.
    #[error(
        "the node at {address} does not answer ({why}); see whether it runs, and whether its \
         configuration says this address and cluster"
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

/// Asks and waits for the answer.
pub(crate) fn ask(
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
    let client = Client::connect(cluster_id(cluster), address, patience)
        .await
        .map_err(|error| silent(error.to_string()))?;
    let answer =
        client.call(request.encode(), patience).await.map_err(|error| silent(error.to_string()))?;
    Response::decode(&answer).map_err(|error| silent(error.to_string()))
}
