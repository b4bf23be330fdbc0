//! A client's connection to a node: asks its [`crate::driver::AppHandler`], and nothing else.

#![expect(clippy::disallowed_methods, reason = "starts the task of its connection")]

use crate::connection::{Caller, Connection, Serve, run};
use crate::consensus::CallError;
use crate::serve::Server;
use crate::transport::{GreetError, greet_on, same_lineage};
use crate::types::NodeId;
use crate::wire::{APP_BYTES_MAX, Hello, Refused, Request, Response};
use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::sync::{Arc, Weak};
use thiserror::Error;
use tokio::net::TcpStream;

/// Why a node cannot be asked.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody there, or it broke off.
    #[error("cannot connect to {address}: {source}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// What the system or the format of the stream says.
        source: io::Error,
    },
    /// It belongs to another cluster.
    #[error(
        "the node at {0} belongs to another cluster: give the name that its configuration has as \
         `cluster`, or the address of another node"
    )]
    OtherCluster(SocketAddr),
    /// Something answers, but not as a node does.
    #[error(
        "what answers at {address} is no node of this version ({what}): another program listens \
         there, or a node of another version; look for the address in the node's ready line"
    )]
    Stranger {
        /// Where.
        address: SocketAddr,
        /// What it said.
        what: String,
    },
    /// It hangs up on us.
    #[error(
        "{0} ends the connection without an answer: another program listens there, or a node that \
         is just ending"
    )]
    Ended(SocketAddr),
    /// Somebody takes connections there and then says nothing.
    #[error(
        "{0} takes connections but says nothing: another program listens there, or a node that \
         hangs"
    )]
    Mute(SocketAddr),
    /// It does not want to talk to us.
    #[error("{address} refuses this connection: {reason}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: Refused,
    },
    /// It takes too long to connect.
    #[error("{0} cannot be reached in time")]
    Timeout(SocketAddr),
}

impl ConnectError {
    /// Whether whoever listens there is no node of this cluster: trying again does not help.
    #[must_use]
    pub const fn is_stranger(&self) -> bool {
        matches!(self, Self::OtherCluster(_) | Self::Stranger { .. })
    }

    fn of(address: SocketAddr, error: GreetError) -> Self {
        match error {
            GreetError::Refused(Refused::Cluster(_)) => Self::OtherCluster(address),
            GreetError::Refused(reason) => Self::Refused { address, reason },
            GreetError::Frame(source) => match source.kind() {
                io::ErrorKind::InvalidData => Self::Stranger { address, what: source.to_string() },
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    Self::Ended(address)
                }
                _ => Self::Io { address, source },
            },
            GreetError::Io(source) => Self::Io { address, source },
        }
    }
}

/// A connection that has been made. Dropping it ends it.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Connection>,
    node: NodeId,
}

/// Whom a client wants to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The cluster's number.
    pub cluster: u64,
    /// Which forming of it; 0 for any.
    pub lineage: u64,
}

impl Client {
    /// Connects to a node of the cluster, whenever that was formed.
    ///
    /// # Errors
    /// If nobody of this cluster and of this program's version answers there.
    pub async fn connect(
        cluster: u64,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        Self::connect_to(Wanted { cluster, lineage: 0 }, address, patience).await
    }

    /// Connects to a node of the cluster that is wanted.
    ///
    /// # Errors
    /// If nobody of this cluster and of this program's version answers there.
    pub async fn connect_to(
        wanted: Wanted,
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        let Wanted { cluster, lineage } = wanted;
        let hello = Hello { cluster, lineage, from: 0, to: 0, nonce: 0 };
        let stream = tokio::time::timeout(patience, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectError::Timeout(address))?
            .map_err(|source| ConnectError::Io { address, source })?;
        let greeted = tokio::time::timeout(patience, greet_on(stream, &hello))
            .await
            .map_err(|_| ConnectError::Mute(address))?;
        let (stream, decoder, theirs) =
            greeted.map_err(|error| ConnectError::of(address, error))?;
        if theirs.cluster != cluster {
            return Err(ConnectError::OtherCluster(address));
        }
        same_lineage(lineage, theirs.lineage)
            .map_err(|reason| ConnectError::Refused { address, reason })?;
        let connection = Connection::new(Caller::Client, Arc::default(), Arc::default());
        let running = connection.clone();
        tokio::spawn(async move {
            // A client is asked nothing.
            let nobody: Weak<dyn Serve> = Weak::<Server>::new();
            if let Err(error) = run(&running, stream, decoder, &nobody).await {
                tracing::warn!(%error, "a node sent nonsense");
            }
            running.close();
        });
        Ok(Self { connection, node: NodeId(theirs.from) })
    }

    /// Who answered.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Asks the node's handler.
    ///
    /// # Errors
    /// If no answer comes in time.
    pub async fn call(&self, request: Vec<u8>, patience: Duration) -> Result<Vec<u8>, CallError> {
        if request.len() > APP_BYTES_MAX {
            return Err(CallError::TooLarge(request.len()));
        }
        match self.connection.begin(&Request::App(request))?.within(patience).await? {
            Response::App(bytes) => Ok(bytes),
            Response::NotServed(reason) => Err(CallError::Refused(reason.to_string())),
            _ => Err(CallError::Garbage("an answer to another question".into())),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.close();
    }
}
