//! Which node a command asks: the options that commands about a running cluster share, and the two
//! questions that most of them begin with.

use crate::ask::{AskError, ClusterName, NODE_ADDRESS, NodeAddress, ask, ask_at};
use clap::Args;
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_placement::store_api::{StoreRequest, StoreResponse};
use nearstate_store::Epoch;
use std::net::SocketAddr;

/// Which node is asked, and how the answer is shown.
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Where a node listens
    #[arg(long, value_name = NODE_ADDRESS)]
    pub(super) node: NodeAddress,
    #[command(flatten)]
    pub(super) cluster: ClusterName,
    /// Print JSON instead of text
    #[arg(long)]
    pub(super) json: bool,
}

impl Asked {
    /// The map of the node, and where the node was found.
    pub(super) fn map(&self) -> Result<(SocketAddr, Map), AskError> {
        let request = Request::GetMap { newer_than: Epoch(0), wait_ms: 0 };
        match ask(&self.cluster, &self.node, &request)? {
            (address, Response::Map(map)) => Ok((address, map)),
            (address, other) => Err(AskError::unexpected(address, &other)),
        }
    }

    /// What the node at an address says.
    pub(super) fn ask_at(
        &self,
        address: SocketAddr,
        request: &StoreRequest,
    ) -> Result<StoreResponse, AskError> {
        match ask_at(&self.cluster, address, &Request::Store(request.clone()))? {
            Response::Store(response) => Ok(response),
            other => Err(AskError::unexpected(address, &other)),
        }
    }
}
