//! Appends on their way to a follower that answers when it is told to, over real TCP.

#![expect(clippy::disallowed_methods, reason = "tests own sockets")]

use super::*;
use crate::connection::{Answer, Caller, Serve};
use crate::transport::Identity;
use crate::wire::Appended;
use futures::{poll, stream};
use openraft::entry::RaftEntry;
use std::net::TcpListener;
use tokio::sync::mpsc;

const SHARD: ShardId = ShardId(1);
const TERM: u64 = 3;
/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shows what has come, and lets the test answer it. Other messages are answered at once.
struct Follower(mpsc::UnboundedSender<(u64, Answer)>);

impl Serve for Follower {
    fn serve(&self, _: Caller, request: Request, answer: Answer) {
        match request {
            Request::Append(_, append) => {
                let first = append.entries.first().map_or(u64::MAX, |entry| entry.at.index);
                self.0.send((first, answer)).unwrap();
            }
            _ => answer.send(&Response::App(Vec::new())),
        }
    }
}

fn node(id: u64, serve: &Arc<Follower>) -> (Arc<Transport>, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let identity = Identity { cluster: 1, lineage: 2, node: NodeId(id), nonce: id };
    let transport = Transport::new(identity);
    let serve: std::sync::Weak<Follower> = Arc::downgrade(serve);
    transport.run(listener, serve).unwrap();
    (transport, address)
}

fn append(index: u64) -> AppendEntriesRequest<Types> {
    let leader = crate::wire::Ballot { term: TERM, node: 1, committed: true };
    let at = |index| convert::log_id(crate::wire::Position { term: TERM, index });
    AppendEntriesRequest {
        vote: convert::vote(&leader),
        prev_log_id: index.checked_sub(1).map(at),
        entries: vec![openraft::alias::EntryOf::<Types>::new_blank(at(index))],
        leader_commit: None,
    }
}

/// More would not be honest: see [`super::super::pipeline`].
#[tokio::test]
async fn two_appends_are_under_way_and_the_next_waits_for_an_answer() {
    let (sender, mut arrived) = mpsc::unbounded_channel();
    let follower = Arc::new(Follower(sender));
    let (leader, at_leader) = node(1, &follower);
    let (other, at_other) = node(2, &follower);
    leader.set_peers(&[(NodeId(2), at_other)]);
    other.set_peers(&[(NodeId(1), at_leader)]);
    let connected = async {
        while leader.connection(NodeId(2)).is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, connected).await.unwrap();

    let (transport, timing) = (leader.clone(), Timing::default());
    let (node, target, orphan_term) = (NodeId(1), NodeId(2), Arc::default());
    let mut client = PeerClient { transport, shard: SHARD, node, target, timing, orphan_term };
    let appends = stream::iter((0..4).map(append));
    let mut answers = client.stream_append(appends, RPCOption::new(PATIENCE)).await.unwrap();
    let mut under_way = std::collections::VecDeque::new();
    for index in 0..4 {
        assert!(poll!(answers.next()).is_pending(), "nobody has answered yet");
        // A connection keeps its order: what was sent before this has arrived.
        leader.call(NodeId(2), &Request::App(vec![1]), PATIENCE).await.unwrap();
        while let Ok(append) = arrived.try_recv() {
            under_way.push_back(append);
        }
        assert_eq!(under_way.len() as u64, (4 - index).min(2), "before the answer to {index}");
        let (first, answer) = under_way.pop_front().unwrap();
        assert_eq!(first, index);
        answer.send(&Response::Append(Appended::Success));
        let item = tokio::time::timeout(PATIENCE, answers.next()).await.unwrap();
        assert!(matches!(item, Some(Ok(_))), "{item:?}");
    }
    assert!(answers.next().await.is_none());
    drop(answers);
    leader.stop();
    other.stop();
}
