//! Whether a newcomer is let in: what this node can answer by itself, before the system shard is
//! asked. And the orders that this node only passes on to that shard.
//!
//! A name belongs to one living node. Whether its holder lives is asked of the holder itself, so a
//! second node of the name is refused at once and for good, and a successor of a dead one waits
//! only until the death is noticed. Neither puts anything into the system shard's log.

use super::answers::{Answers, refused};
use super::vigil;
use nearstate_placement::api::{Request, Response};
use nearstate_placement::system::{SystemCommand, SystemRefusal, SystemReply};
use nearstate_placement::{Member, MemberState};
use nearstate_store::{Epoch, Reply, ShardId};
use std::time::Duration;

/// How long a newcomer's map may take to come to this node.
const JOINED_MAP_WAIT_MS: u32 = 2_000;
/// How long the holder of a name may take to say that it lives.
const HOLDER_PATIENCE: Duration = Duration::from_millis(500);

impl Answers {
    /// Answers [`Request::Join`].
    pub(super) async fn admit(&self, name: &str, join: SystemCommand) -> Response {
        let map = self.view.map();
        // Without a majority nobody is let in or found to be dead: whoever asks should know that.
        let lost = self.store.get().and_then(|store| vigil::no_majority(store, &map, self.node));
        if let Some(why) = lost {
            return refused(why, true);
        }
        let holder = map.live_member_named(name).cloned();
        if let Some(holder) = holder.filter(|holder| !is_retry(&join, holder)) {
            if self.lives(&holder).await {
                return refused(in_use(&holder), false);
            }
            if matches!(holder.state, MemberState::Alive | MemberState::Leaving) {
                return refused(not_yet_dead(&holder), true);
            }
        }
        self.let_in(join).await
    }

    /// Whether a member answers; this node does.
    async fn lives(&self, holder: &Member) -> bool {
        if holder.id == self.node {
            return true;
        }
        let Some(store) = self.store.get() else { return false };
        let status = Request::Status.encode();
        let answer = store.call(holder.id, status, HOLDER_PATIENCE).await;
        answer.is_ok_and(|bytes| matches!(Response::decode(&bytes), Ok(Response::Status(_))))
    }

    async fn let_in(&self, join: SystemCommand) -> Response {
        match self.ask_system(&join).await {
            Ok(SystemReply::Joined(id, epoch)) => {
                let before = Epoch(epoch.0.saturating_sub(1));
                match self.view.newer_than(before, JOINED_MAP_WAIT_MS).await {
                    Some(map) => Response::Joined { id, map: (*map).clone() },
                    None => refused("this node is behind; ask another one".to_owned(), true),
                }
            }
            Ok(SystemReply::Refused(refusal)) => self.in_words(&refusal),
            Ok(SystemReply::Done(_)) => refused("the system shard was confused".to_owned(), true),
            Err(reason) => refused(reason, true),
        }
    }

    /// Answers an order to the system shard.
    pub(super) async fn order(&self, order: &SystemCommand) -> Response {
        match self.ask_system(order).await {
            Ok(SystemReply::Done(epoch)) => Response::Ordered(epoch),
            Ok(SystemReply::Refused(refusal)) => refused(refusal.to_string(), false),
            Ok(SystemReply::Joined(..)) => {
                refused("the system shard was confused".to_owned(), true)
            }
            Err(reason) => refused(reason, true),
        }
    }

    /// Asks the system shard; an error says in words why there is no answer.
    async fn ask_system(&self, command: &SystemCommand) -> Result<SystemReply, String> {
        let store = self.store.get().ok_or("this node is only starting; try again")?;
        match store.propose(ShardId::SYSTEM, command.encode()).await {
            Ok(Reply::System(bytes)) => {
                SystemReply::decode(&bytes).map_err(|error| error.to_string())
            }
            Ok(_) => Err("the system shard gave no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn in_words(&self, refusal: &SystemRefusal) -> Response {
        match refusal {
            SystemRefusal::NameTaken(id) => {
                let words = format!("{} was alive a moment ago", self.view.map().label(*id));
                refused(format!("{words} and has this name; try again if it has died"), true)
            }
            SystemRefusal::TooManyMembers => refused(refusal.to_string(), false),
            other => refused(other.to_string(), true),
        }
    }
}

/// Whether the newcomer is the holder itself, whose answer was lost: it asks from the same address,
/// where no other process can listen at the time.
fn is_retry(join: &SystemCommand, holder: &Member) -> bool {
    matches!(join, SystemCommand::Join { address, .. } if *address == holder.address)
}

fn in_use(holder: &Member) -> String {
    format!(
        "the name `{}` is in use: {} at {} is alive; give this node another `name` in its \
         configuration, or end that one first",
        holder.name,
        holder.label(),
        holder.address
    )
}

fn not_yet_dead(holder: &Member) -> String {
    format!(
        "{} at {} has this name and does not answer, but is not yet taken for dead; try again",
        holder.label(),
        holder.address
    )
}
