//! One connection's life after the hello: frames out of a queue, frames into answers and requests.
//!
//! Used by both ends alike. Bounds: bytes that wait to be sent, requests that are being served.

use crate::clock::boot_now;
use crate::consensus::CallError;
use crate::frame::{self, Frame, FrameDecoder, FrameKind};
use crate::refusal_counts::{RefusalCounts, RefusalReason};
use crate::transport::lock;
use crate::types::NodeId;
use crate::wire::{NotServed, Request, Response, WireError};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

/// Bytes that may wait to be sent.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Requests of one connection that may be served at a time.
const SERVING_MAX: usize = 4096;
const READ_BYTES: usize = 64 << 10;
/// A connection that is silent for so long says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_millis(50);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A node of the cluster.
    Node(NodeId),
    /// Somebody who has no part in it.
    Client,
}

/// What answers requests. Called on the connection's task in the order of arrival: it must not
/// block, and answers later if it has to wait.
pub(crate) trait Serve: Send + Sync + 'static {
    fn serve(&self, from: Caller, request: Request, answer: Answer);
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Connection {
    caller: Caller,
    queue: Mutex<Vec<u8>>,
    wake: Notify,
    pending: Mutex<BTreeMap<u64, oneshot::Sender<AlignedVec>>>,
    next_id: AtomicU64,
    serving: AtomicUsize,
    closed: AtomicBool,
    heard: Arc<AtomicU64>,
    refusals: Arc<RefusalCounts>,
}

impl Connection {
    pub(crate) fn new(
        caller: Caller,
        heard: Arc<AtomicU64>,
        refusals: Arc<RefusalCounts>,
    ) -> Arc<Self> {
        Arc::new(Self {
            caller,
            queue: Mutex::default(),
            wake: Notify::new(),
            pending: Mutex::default(),
            next_id: AtomicU64::new(1),
            serving: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            heard,
            refusals,
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends it; whoever waits for an answer is told.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        lock(&self.pending).clear();
        self.wake.notify_one();
    }

    /// Queues a request; its answer is awaited with what is returned.
    pub(crate) fn begin(self: &Arc<Self>, request: &Request) -> Result<Pending, CallError> {
        let body = request.encode().map_err(|error| CallError::Garbage(error.to_string()))?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = lock(&self.pending);
            // Under the lock: `close` empties the map after it has set the mark.
            if self.is_closed() {
                return Err(CallError::Broken);
            }
            pending.insert(id, sender);
        }
        let pending = Pending { connection: self.clone(), id, receiver };
        if self.push(FrameKind::Request, id, &body) {
            return Ok(pending);
        }
        self.refusals.count(RefusalReason::QueueFull);
        Err(CallError::Busy)
    }

    fn push(&self, kind: FrameKind, id: u64, body: &AlignedVec) -> bool {
        let mut queue = lock(&self.queue);
        if queue.len() + body.len() > QUEUE_BYTES_MAX {
            return false;
        }
        frame::encode(kind, id, body, &mut queue);
        drop(queue);
        self.wake.notify_one();
        true
    }

    fn respond(&self, id: u64, response: &Response) {
        let body = response.encode().or_else(|error| {
            tracing::error!(%error, "an answer of ours is out of bounds");
            Response::NotServed(NotServed::Unknown).encode()
        });
        let sent = body.is_ok_and(|body| self.push(FrameKind::Response, id, &body));
        if !sent {
            // The other end does not read its answers.
            self.close();
        }
    }

    fn take_in(self: &Arc<Self>, frame: &Frame, serve: &Weak<dyn Serve>) -> Result<(), WireError> {
        match frame.kind {
            FrameKind::Response => {
                // Nobody waits any more: it came too late.
                let waiting = lock(&self.pending).remove(&frame.id);
                if let Some(sender) = waiting {
                    let _ = sender.send(frame.body.clone());
                }
                Ok(())
            }
            FrameKind::Request => {
                let request = Request::decode(&frame.body)?;
                let serving = self.serving.fetch_add(1, Ordering::Relaxed);
                let answer = Answer { connection: self.clone(), id: frame.id, sent: false };
                match serve.upgrade() {
                    _ if serving >= SERVING_MAX => {
                        answer.send(&Response::NotServed(NotServed::Busy));
                    }
                    Some(serve) => serve.serve(self.caller, request, answer),
                    None => answer.send(&Response::NotServed(NotServed::Stopped)),
                }
                Ok(())
            }
            FrameKind::Hello => Err(WireError::Bounds("a second hello")),
        }
    }
}

/// The duty to answer a request. Dropped without an answer it says that the outcome is unknown.
#[derive(Debug)]
pub(crate) struct Answer {
    connection: Arc<Connection>,
    id: u64,
    sent: bool,
}

impl Answer {
    pub(crate) fn send(mut self, response: &Response) {
        self.connection.refusals.count_answer(response);
        self.sent = true;
        self.connection.respond(self.id, response);
    }

    /// The same for a request that makes no sense for a reason that is known better.
    pub(crate) fn refuse(mut self, reason: RefusalReason) {
        self.count(reason);
        self.sent = true;
        self.connection.respond(self.id, &Response::NotServed(NotServed::Malformed));
    }

    /// Counts what the answer says in its own words.
    pub(crate) fn count(&self, reason: RefusalReason) {
        self.connection.refusals.count(reason);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.sent {
            self.count(RefusalReason::Unknown);
            self.connection.respond(self.id, &Response::NotServed(NotServed::Unknown));
        }
        self.connection.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer that is waited for. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Pending {
    connection: Arc<Connection>,
    id: u64,
    receiver: oneshot::Receiver<AlignedVec>,
}

impl Pending {
    pub(crate) async fn within(self, patience: Duration) -> Result<Response, CallError> {
        tokio::time::timeout(patience, self).await.unwrap_or(Err(CallError::Timeout))
    }
}

impl Future for Pending {
    type Output = Result<Response, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver).poll(context).map(|body| {
            let body = body.map_err(|_| CallError::Broken)?;
            match Response::decode(&body) {
                Ok(response) => Ok(response),
                Err(error) => Err(CallError::Garbage(error.to_string())),
            }
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.connection.pending).remove(&self.id);
    }
}

/// Reads until a whole frame is there.
pub(crate) async fn read_frame(
    stream: &mut TcpStream,
    decoder: &mut FrameDecoder,
) -> io::Result<Frame> {
    let mut bytes = [0; 1024];
    loop {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        if let Some(frame) = decoder.next_frame().map_err(invalid)? {
            return Ok(frame);
        }
        match stream.read(&mut bytes).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => decoder.feed(&bytes[..n]),
        }
    }
}

/// Runs a connection until it is closed or breaks. An error is a frame that made no sense.
pub(crate) async fn run(
    connection: &Arc<Connection>,
    stream: TcpStream,
    decoder: FrameDecoder,
    serve: &Weak<dyn Serve>,
) -> io::Result<()> {
    let (read, write) = stream.into_split();
    tokio::select! {
        ended = read_loop(connection, read, decoder, serve) => ended,
        () = write_loop(connection, write) => Ok(()),
    }
}

async fn read_loop(
    connection: &Arc<Connection>,
    mut stream: OwnedReadHalf,
    mut decoder: FrameDecoder,
    serve: &Weak<dyn Serve>,
) -> io::Result<()> {
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        while let Some(frame) = decoder.next_frame().map_err(invalid)? {
            if let Err(error) = connection.take_in(&frame, serve) {
                connection.refusals.count(RefusalReason::Message);
                tracing::warn!(caller = ?connection.caller, %error, "ended a connection");
                return Ok(());
            }
        }
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) => decoder.feed(&bytes[..n]),
        }
        connection.heard.store(boot_now().0, Ordering::Relaxed);
    }
}

async fn write_loop(connection: &Connection, mut stream: OwnedWriteHalf) {
    let mut bytes = Vec::new();
    while !connection.is_closed() {
        bytes.clear();
        core::mem::swap(&mut bytes, &mut *lock(&connection.queue));
        if bytes.is_empty() {
            let idle = tokio::time::timeout(SIGN_OF_LIFE, connection.wake.notified()).await;
            if idle.is_err() && matches!(connection.caller, Caller::Node(_)) {
                // Answers nobody: no question has the id 0. A node that has nothing to say is heard
                // of all the same, and not taken for dead.
                connection.respond(0, &Response::NotServed(NotServed::Busy));
            }
        } else if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
